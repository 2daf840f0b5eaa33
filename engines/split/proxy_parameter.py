"""A local scalar parameter that represents all remote parameters to optimizers and gradient utilities.

An optimizer, ``zero_grad`` and ``clip_grad_norm_`` see only parameters of this process. The gradient of the proxy is
the norm of all remote gradients, so the norm over ``model.parameters()`` is that of the whole model. Before a gradient
or step message the proxy's gradient is compared with its last known value: if the user dropped, zeroed or scaled it,
the server does the same to the remote gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class GradientChange(NamedTuple):
    """What the user did to the gradient: set it to None (``dropped``), or multiplied it by ``keep``."""

    dropped: bool
    keep: float


class ProxyParameter:
    """Detects changes that the user makes to the gradient of the proxy parameter.

    Parameters
    ----------
    parameter : nn.Parameter
        The scalar proxy; its value is not used.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._expected = 0.0
        parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def change(self) -> GradientChange:
        """Return the change of the gradient since the last call."""
        gradient, before = self._parameter.grad, self._expected
        self._accumulated(self._parameter)
        if gradient is None:
            return GradientChange(dropped=True, keep=0.0)
        now = float(gradient)
        # Without finite norms there is no factor; the gradients on both sides are not finite anyway.
        keep = now / before if before and math.isfinite(before) and math.isfinite(now) else 1.0
        return GradientChange(dropped=False, keep=keep)

    def difference(self, norm: float) -> Tensor:
        """Return what to add to the gradient so that it becomes ``norm``."""
        gradient = self._parameter.grad
        new = torch.full_like(self._parameter, norm)
        return new if gradient is None else new - gradient

    def _accumulated(self, parameter: Tensor) -> None:
        self._expected = 0.0 if parameter.grad is None else float(parameter.grad)
