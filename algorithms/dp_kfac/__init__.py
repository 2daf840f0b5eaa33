"""DP-KFAC: K-FAC whose work is distributed over ranks by layer, with the traffic of plain SGD.

Usable in any DistributedDataParallel script: ``from farshore.algorithms.dp_kfac import DPKFAC``. The method, its
settings and its limits are described in ``docs/methods/dp_kfac.md``. The names of ``__all__`` are imported lazily.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimizer import DPKFACOptimizer
    from .preconditioner import DPKFAC

__all__ = ["DPKFAC", "DPKFACOptimizer"]

_MODULES = {"DPKFAC": "preconditioner", "DPKFACOptimizer": "optimizer"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
