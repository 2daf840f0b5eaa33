"""Saved states of models: load one into a module, and write module and state for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NotFoundError, StorageError
from ..runs import files
from ..runs.model_states import load_state, save_state
from .onnx_export import compare_graph, require, write_graph
from .wrappers import first_tensor


def load_into(module: nn.Module, state: Path | None) -> dict[str, str]:
    """Load a saved state into a module and set it to evaluation mode; return the state's metadata.

    Raises
    ------
    NotFoundError
        There is no state.
    StorageError
        It is damaged, or of another model.
    """
    tensors, metadata = load_state(_required(state))
    try:
        module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise StorageError(f"the state {state} does not fit this run's model: {reason}") from error
    module.eval()
    return metadata


def write_weights(state: Path | None, path: Path) -> dict[str, Any]:
    """Write a saved state to a safetensors file, with the names of the plain module; errors as :func:`load_into`."""
    tensors, metadata = load_state(_required(state))
    save_state(path, tensors, metadata)
    return {"tensors": len(tensors), "numbers": sum(array.size for array in tensors.values()), **metadata}


def _required(state: Path | None) -> Path:
    if state is None:
        raise NotFoundError("the run has no saved model", hint="states are written at the first checkpoint")
    return state


class _FirstOutput(nn.Module):
    """Returns the first tensor of what a model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return first_tensor(self.model(x))


def write_model(module: nn.Module, batch: Any, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write a model that takes the first tensor of a batch to an ONNX file, and compare both on that tensor.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    batch
        Tensors, in any nesting of tuples, lists and mappings; of two samples at least.
    path : Path
        The file. Its input is named ``inputs``, its output ``logits``.
    metadata : Mapping of str to str

    Raises
    ------
    ConfigError
        The batch has no such tensor, or the model does not take it alone.
    MissingExtraError, RunFailedError
        See :class:`~farshore.core.exports.SupportsExport`.
    """
    require("onnx", "onnxscript", "onnxruntime")
    example = _first(batch)
    if example is None or not example.is_floating_point() or len(example) < 2:
        raise ConfigError("the method's batches do not begin with a tensor of samples", hint="override 'export' in it")
    wrapped = _FirstOutput(module).eval()
    try:
        with torch.no_grad():
            wrapped(example)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the model does not take the batch's first tensor alone: {reason}") from error
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        write_graph(wrapped, {"inputs": example}, {"inputs": ("batch",)}, temporary, metadata)
        difference = compare_graph(temporary, wrapped, {"inputs": example})

    files.replace(path, write)
    return {"samples": len(example), "largest_difference": difference, **metadata}


def _first(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((found for part in parts if (found := _first(part)) is not None), None)
