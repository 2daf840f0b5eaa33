"""CCGC: cluster-guided contrastive clustering of the nodes of a graph with attributes.

Usable without the platform: ``CCGC(clusters=7).fit_predict(graph)``. The method, its settings and its limits are
described in ``docs/methods/ccgc.md``. The names of ``__all__`` are imported lazily.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimator import CCGC
    from .metrics import clustering_metrics
    from .result import ClusteringResult
    from .settings import CCGCSettings
    from .smoothing import smooth

__all__ = ["CCGC", "CCGCSettings", "ClusteringResult", "clustering_metrics", "smooth"]

_MODULES = {
    "CCGC": "estimator",
    "CCGCSettings": "settings",
    "ClusteringResult": "result",
    "clustering_metrics": "metrics",
    "smooth": "smoothing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
