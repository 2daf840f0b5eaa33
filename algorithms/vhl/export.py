"""Exports a trained model to ONNX with the outputs of the natural classes only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...models.onnx_export import largest_difference, require, write_onnx
from ...models.state_files import load_into
from ...runs import files
from .heads import natural_model
from .task import VHLTask

#: Number of test images on which an exported file is compared with its model.
CHECKED = 64


class _Logits(nn.Module):
    """Wraps a model that returns logits and features; returns the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)[0]
        return logits


def export_onnx(
    model: nn.Module, classes: int, shape: tuple[int, int, int], path: Path, about: Mapping[str, str] | None = None
) -> None:
    """Write an ONNX file whose predictions are those that the score ``acc_nat`` counts.

    Parameters
    ----------
    model : nn.Module
        Returns logits and features; not modified.
    classes : int
        Natural classes C, the outputs of the file.
    shape : (channels, H, W)
        Shape of one image.
    path : Path
        The file. Input ``images`` [B, channels, H, W] fp32, scaled as in training; output ``logits`` [B, C].
    about : Mapping[str, str], optional
        Stored in the file's metadata.

    Raises
    ------
    ConfigError
        The model has no head named ``linear``.
    MissingExtraError
        The packages that write ONNX are not installed.
    """
    write_onnx(_Logits(natural_model(model, classes)).eval(), shape, path, about)


def export_state(task: VHLTask, state: Path | None, path: Path) -> dict[str, Any]:
    """Export a saved state of a run to ONNX, and compare the file with the model on test images.

    Parameters
    ----------
    task : VHLTask
        The task of the run.
    state : Path
        A safetensors file with the model's tensors.
    path : Path
        The ONNX file. Its metadata hold the class names, and ``mean`` and ``deviation``: the input is
        (x/255 - mean)/deviation.

    Returns
    -------
    dict
        ``classes``, number of ``images`` compared, ``largest_difference`` of their logits, and the metadata of the
        state file.

    Raises
    ------
    MissingExtraError, StorageError, RunFailedError
        See :class:`~farshore.core.exports.SupportsExport`.
    """
    require("onnx", "onnxscript", "onnxruntime")
    model = task.model().module
    metadata = load_into(model, state)
    images = task.test_images(CHECKED)
    about = {"classes": json.dumps(task.images.train.classes), **task.scaling}
    shape = (images.shape[1], images.shape[2], images.shape[3])
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        export_onnx(model, task.classes, shape, temporary, about)
        difference = largest_difference(temporary, _Logits(natural_model(model, task.classes)), images)

    files.replace(path, write)
    return {"classes": task.classes, "images": len(images), "largest_difference": difference, **metadata}
