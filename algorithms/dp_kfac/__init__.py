"""DP-KFAC: second-order optimization whose extra work is spread over ranks, with the traffic of plain SGD.

Usable in any DistributedDataParallel script: ``from farshore.algorithms.dp_kfac import DPKFAC``. What is imported from
here is loaded when it is first asked for.
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
