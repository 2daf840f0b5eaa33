"""An optimizer that preconditions the gradients with K-FAC before the step of a base optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .preconditioner import DPKFAC


class DPKFACOptimizer:
    """A base optimizer whose step preconditions the gradients first; give ``.base`` to learning-rate schedulers.

    Parameters
    ----------
    base : Optimizer
        Applies its momentum and weight decay after preconditioning.
    kfac : DPKFAC
    """

    def __init__(self, base: torch.optim.Optimizer, kfac: DPKFAC) -> None:
        self.base, self.kfac = base, kfac

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Precondition, then step; ``closure``, if given, is called once to compute loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.kfac.step()
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"base", "kfac"}``; the latter is this rank's shard."""
        return {"base": self.base.state_dict(), "kfac": self.kfac.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.base.load_state_dict(state["base"])
        self.kfac.load_state_dict(state["kfac"])
