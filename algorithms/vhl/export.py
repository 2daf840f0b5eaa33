"""A trained model as ONNX, with outputs for the natural classes only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import StorageError
from ...models.onnx_export import largest_difference, require, write_onnx
from ...runs import files
from ...runs.model_states import load_state
from .heads import natural_part
from .task import VHLTask

#: Test images on which a file is compared with its model.
CHECKED = 64


class _Logits(nn.Module):
    """A model without the features that it shows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)[0]
        return logits


def export_onnx(
    model: nn.Module, classes: int, shape: tuple[int, int, int], path: Path, about: Mapping[str, str] | None = None
) -> None:
    """Write what ``model`` makes of natural images; its decisions are those that ``acc_nat`` counts.

    Parameters
    ----------
    model : nn.Module
        Returns logits and features; stays as it is.
    classes : int
        C, outputs of the file.
    shape : (channels, H, W)
        Of an image.
    path : Path
        The file. Input ``images`` [B, channels, H, W] fp32, scaled as in training; output ``logits`` [B, C].
    about : Mapping[str, str], optional
        Goes into the file's metadata.

    Raises
    ------
    ConfigError
        The model has no head called ``linear``.
    MissingExtraError
        The packages that write ONNX are not there.
    """
    write_onnx(_Logits(natural_part(model, classes)).eval(), shape, path, about)


def export_state(task: VHLTask, state: Path, path: Path) -> dict[str, Any]:
    """Write one of a run's states as ONNX, and compare file and model on test images.

    Parameters
    ----------
    task : VHLTask
        The run's.
    state : Path
        A safetensors file with the model's tensors.
    path : Path
        The ONNX file. Its metadata hold the classes' names, and ``mean`` and ``deviation``: the input is
        (x/255 - mean)/deviation.

    Returns
    -------
    dict
        ``classes``, ``images`` compared, ``largest_difference`` of their logits, and what the state says about itself.

    Raises
    ------
    MissingExtraError, StorageError, RunFailedError
        See :class:`~farshore.core.exports.Exports`.
    """
    require("onnx", "onnxscript", "onnxruntime")
    model, told = _restored(task, state)
    images = task.test_images(CHECKED)
    about = {"classes": json.dumps(task.images.train.classes), **task.scaling}
    shape = (images.shape[1], images.shape[2], images.shape[3])
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        export_onnx(model, task.classes, shape, temporary, about)
        difference = largest_difference(temporary, _Logits(natural_part(model, task.classes)), images)

    files.replace(path, write)
    return {"classes": task.classes, "images": len(images), "largest_difference": difference, **told}


def _restored(task: VHLTask, state: Path) -> tuple[nn.Module, dict[str, str]]:
    """The model as it was in a state, and what that says about itself."""
    tensors, told = load_state(state)
    model = task.model().module
    try:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    except (RuntimeError, TypeError) as error:
        said = " ".join(str(error).split("\n", 1)[-1].split())[:200]
        raise StorageError(f"the state {state} is not one of this run's model: {said}") from error
    return model.eval(), told
