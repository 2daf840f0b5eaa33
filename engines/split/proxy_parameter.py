"""What a user does to the gradients here, told to the gradients over there.

An optimizer, ``zero_grad`` and ``clip_grad_norm_`` see only parameters of this process. One of them, the anchor, stands
for all parameters in the cloud: its gradient is the norm of theirs. So the norm of a whole model's gradients comes out
right, and whatever the user does to the anchor's gradient – dropping, zeroing, scaling it – is read off before the next
message and done in the cloud too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.message import Scalar


class ProxyParameter:
    """Watches one parameter's gradient.

    Parameters
    ----------
    parameter : nn.Parameter
        A scalar that stands for the parameters in the cloud; its value means nothing.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._expected = 0.0
        parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Scalar]:
        """What has happened to the gradient since the cloud was last told.

        Returns
        -------
        dict
            ``dropped``: there is none; ``keep``: what it was multiplied by.
        """
        gradient, before = self._parameter.grad, self._expected
        self._accumulated(self._parameter)
        if gradient is None:
            return {"dropped": True, "keep": 0.0}
        now = float(gradient)
        # Without a finite norm there is nothing to compare: the gradients there are as broken as those here.
        keep = now / before if before and math.isfinite(before) and math.isfinite(now) else 1.0
        return {"dropped": False, "keep": keep}

    def difference(self, norm: float) -> Tensor:
        """What has to be added to the gradient so that it becomes ``norm``."""
        gradient = self._parameter.grad
        new = torch.tensor(norm, dtype=self._parameter.dtype, device=self._parameter.device)
        return new if gradient is None else new - gradient

    def _accumulated(self, parameter: Tensor) -> None:
        self._expected = 0.0 if parameter.grad is None else float(parameter.grad)
