"""Export modules to ONNX and check the file against the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    write_graph(module, {"images": torch.zeros(2, *shape)}, {"images": ("batch",)}, path, metadata)


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Sequence[str]],
    path: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export a module to an ONNX file with one output, ``logits``.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode; takes ``inputs`` by position.
    inputs : Mapping of str to Tensor
        An example of each input, by its name in the file; no dynamic axis has length 0 or 1.
    dynamic : Mapping of str to sequences of str
        Names of the leading axes of each input whose length may vary; axes of one name have one length.
    path : Path
    metadata : Mapping[str, str], optional
        Stored in the file's ``metadata_props``.

    Raises
    ------
    MissingExtraError
        ``onnx`` or ``onnxscript`` is not installed.
    """
    require("onnx", "onnxscript")
    axes = {name: torch.export.Dim(name) for names in dynamic.values() for name in names}
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_shapes=tuple({i: axes[axis] for i, axis in enumerate(dynamic.get(name, ()))} for name in inputs),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)


@torch.no_grad()
def largest_difference(path: Path, module: nn.Module, images: Tensor) -> float:
    """The largest absolute difference between the logits of a file of :func:`write_onnx` and of a module.

    Parameters, errors and result are those of :func:`compare_graph`; ``images`` is [B, …] float32.
    """
    return compare_graph(path, module, {"images": images})


@torch.no_grad()
def compare_graph(path: Path, module: nn.Module, inputs: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between the logits of an ONNX file and of a module.

    Parameters
    ----------
    path : Path
        A file written by :func:`write_graph`.
    module : nn.Module
        In evaluation mode.
    inputs : Mapping of str to Tensor

    Raises
    ------
    MissingExtraError
        ``onnxruntime`` is not installed.
    RunFailedError
        The difference exceeds rounding, see :func:`check_close`.
    """
    require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    return check_close(found, module(*inputs.values()).numpy(), "the ONNX file")


def check_close(found: NDArray[Any], expected: NDArray[Any], what: str) -> float:
    """Return the largest absolute difference of two outputs.

    Raises
    ------
    RunFailedError
        It exceeds rounding (1e-3 of the largest output), or is not a number; the message says ``what`` differs.
    """
    difference = np.abs(found - expected)
    if not difference.max() <= 1e-3 * max(1.0, float(np.abs(expected).max())):  # so written that NaN fails
        raise RunFailedError(
            f"the outputs of {what} differ by {difference.max():.3g} from the model's; nothing was written",
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
