"""Export modules to ONNX and check the file against the module."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import MissingExtraError, RunFailedError


def write_onnx(
    module: nn.Module, shape: tuple[int, ...], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Export an image classifier to an ONNX file with a dynamic batch dimension.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode; one input [B, *shape] float32, one output [B, classes].
    shape : tuple of int
        One input without the batch dimension.
    path : Path
        The file. Its input is named ``images``, its output ``logits``.
    metadata : Mapping[str, str], optional
        Stored in the file's ``metadata_props``.

    Raises
    ------
    MissingExtraError
        ``onnx`` or ``onnxscript`` is not installed.
    """
    require("onnx", "onnxscript")
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        module,
        (torch.zeros(2, *shape),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(batch,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)


@torch.no_grad()
def largest_difference(path: Path, module: nn.Module, images: Tensor) -> float:
    """The largest absolute difference between the logits of an ONNX file and of a module.

    Parameters
    ----------
    path : Path
        A file written by :func:`write_onnx`.
    module : nn.Module
        In evaluation mode; returns logits [B, classes].
    images : Tensor
        [B, …] float32.

    Raises
    ------
    MissingExtraError
        ``onnxruntime`` is not installed.
    RunFailedError
        The difference exceeds rounding (1e-3 of the largest logit), or is not a number.
    """
    require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"images": images.numpy()})[0]
    expected: NDArray[np.float32] = module(images).numpy()
    difference = np.abs(found - expected)
    if not difference.max() <= 1e-3 * max(1.0, float(np.abs(expected).max())):  # so written that NaN fails
        raise RunFailedError(
            f"the ONNX file's outputs differ by {difference.max():.3g} from the model's; the file was discarded",
            hint="try other versions of onnxscript and onnxruntime, or use the state file itself",
        )
    return float(difference.max())


def require(*packages: str) -> None:
    """Check that packages of the ``export`` extra are installed.

    Raises
    ------
    MissingExtraError
        A package is not installed; the message names the first one.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "export")
