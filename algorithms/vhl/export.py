"""A trained model as ONNX, with outputs for the natural classes only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from .models import natural_part


class _Logits(nn.Module):
    """A model without the features that it shows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)[0]
        return logits


def export_onnx(model: nn.Module, classes: int, shape: tuple[int, int, int], path: Path) -> None:
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

    Raises
    ------
    ConfigError
        The packages that write ONNX are not there, or the model has no head called ``linear``.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError("onnxscript, which writes ONNX, is not installed", cure="install farshore[export]") from None
    part = _Logits(natural_part(model, classes)).eval()
    example = torch.zeros(2, *shape)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        part,
        (example,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(batch,),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
