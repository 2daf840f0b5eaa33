"""One optimizer of two: K-FAC's gradients, then the base optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .preconditioner import DPKFAC


class DPKFACOptimizer:
    """A base optimizer whose step preconditions first; learning-rate schedulers take ``.base``.

    Parameters
    ----------
    base : Optimizer
        Momentum and weight decay are its own, applied after preconditioning.
    kfac : DPKFAC
    """

    def __init__(self, base: torch.optim.Optimizer, kfac: DPKFAC) -> None:
        self.base, self.kfac = base, kfac

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's."""
        return self.base.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base optimizer's."""
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition, then step; ``closure`` computes the loss and its gradients, once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.kfac.step()
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """``{"base", "kfac"}``; the latter is this rank's part."""
        return {"base": self.base.state_dict(), "kfac": self.kfac.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.base.load_state_dict(state["base"])
        self.kfac.load_state_dict(state["kfac"])
