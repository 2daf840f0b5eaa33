"""An exported model predicts what the trained one predicts among natural classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.export import export_onnx
from farshore.algorithms.vhl.heads import widen_head
from farshore.models.image_classifiers import build

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_exported_model_has_the_natural_outputs_and_their_argmax(tmp_path: Path, norm: str) -> None:
    model = build("conv3", 4, 1, norm=norm, seed=1, size=8)  # type: ignore[arg-type]
    widen_head(model, 4, seed=1)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(3):  # move the running statistics from their initial values
            model(2 * x + 1)
        model.linear.bias[4:] += 5  # a virtual class would win everywhere
        model.eval()
        expected = model(x)[0]
    assert (expected.argmax(1) >= 4).all()
    export_onnx(model.train(), 4, (1, 8, 8), tmp_path / "model.onnx")
    assert model.training
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 64):  # the batch dimension is dynamic
        (logits,) = session.run(["logits"], {"images": x[:count].numpy()})
        assert logits.shape == (count, 4)
        assert np.allclose(logits, expected[:count, :4].numpy(), atol=1e-4)
        assert np.array_equal(logits.argmax(1), expected[:count, :4].argmax(1).numpy())
    assert len(np.unique(logits.argmax(1))) > 1
