"""Virtual homogeneity learning (VHL): all clients also train on one shared set of labeled noise images.

The names below are the public API for custom training loops. They are imported lazily, so importing this package does
not import torch. The method is described in ``docs/methods/vhl.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_norm import forward_both
    from .export import export_onnx
    from .heads import natural_model, widen_head
    from .loss_options import LossOptions
    from .losses import LossParts, VHLLoss
    from .recipe import VirtualRecipe
    from .virtual import VirtualData

__all__ = [
    "LossOptions",
    "LossParts",
    "VHLLoss",
    "VirtualData",
    "VirtualRecipe",
    "export_onnx",
    "forward_both",
    "natural_model",
    "widen_head",
]

_MODULES = {
    "LossOptions": "loss_options",
    "LossParts": "losses",
    "VHLLoss": "losses",
    "VirtualData": "virtual",
    "VirtualRecipe": "recipe",
    "export_onnx": "export",
    "forward_both": "batch_norm",
    "natural_model": "heads",
    "widen_head": "heads",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
