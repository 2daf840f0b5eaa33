"""``farshore export``: the ONNX file computes what the model computes, and errors name their cause."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl import export as exporting
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.cli import main as cli
from farshore.core.errors import ExitCode
from farshore.core.seeds import Seed
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("one_thread")]

SETTINGS: dict[str, Any] = {"rounds": 3, "per_round": 2, "local_epochs": 1, "batch": 256, "lr": 0.2}
SETTINGS |= {"virtual": {"per_class": 4, "batch": 16}, "partition": {"kind": "iid"}, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's home with the run ``r1``."""
    path = tmp_path_factory.mktemp("home")
    config = WORKLOAD.config.model_validate(SETTINGS)
    Simulation(WORKLOAD, config, path / "runs" / "r1", 4, 2).run()
    return path


def execute(*arguments: object) -> int:
    return cli.execute(["export", *map(str, arguments)])


def test_the_file_has_the_accuracy_of_the_best_round(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.open(home / "runs" / "r1")
    path = tmp_path / "model.onnx"
    assert execute("r1", "--home", home, "--onnx", path, "--json") == 0
    output = json.loads(capsys.readouterr().out)
    best = max(read_history(run.path, 3), key=lambda entry: entry["acc"])
    assert (output["run"], output["classes"], output["images"]) == ("r1", 10, 64)
    assert (output["round"], float(output["acc"])) == (str(best["round"]), best["acc"])
    assert 0 <= output["largest_difference"] < 1e-3
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list("0123456789")
    task: Any = WORKLOAD.task(WORKLOAD.config.model_validate(SETTINGS), Seed(2), Path, 4)
    pixels = task.images.test.images.astype(np.float32) / 255
    images = (pixels - json.loads(about["mean"])[0]) / json.loads(about["deviation"])[0]
    (logits,) = session.run(["logits"], {"images": images.astype(np.float32)})
    assert logits.shape == (len(images), 10)
    assert (logits.argmax(1) == task.images.test.labels).mean() == pytest.approx(best["acc_nat"], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], ExitCode.NOT_FOUND, "no run is called 'nowhere'"),
        (["{home}/runs"], ExitCode.NOT_FOUND, "is a folder of runs try: name one of them, such as"),
        (["{home}"], ExitCode.NOT_FOUND, "is not a run directory"),
        (["r1", "--state", "worst.safetensors"], ExitCode.NOT_FOUND, "there is no state worst.safetensors"),
        (["{plain}"], ExitCode.NOT_FOUND, "the run has no saved model"),
        (["{ping}", "--state", "{best}"], ExitCode.CONFIG, "the models of 'ping' cannot be exported"),
        (
            ["{cifar}", "--state", "{best}"],
            ExitCode.DATA,
            "the data set 'cifar10' is not given try: give --data cifar10",
        ),
        (["{unknown}", "--state", "{best}"], ExitCode.NOT_FOUND, "unknown method 'vhx' try: did you mean 'vhl'?"),
        (["{old}", "--state", "{best}"], ExitCode.CONFIG, "unknown setting 'wheels'"),
        (["{wide}", "--state", "{best}"], ExitCode.STORAGE, "does not fit this run's model"),
        (["r1", "--state", "{broken}"], ExitCode.STORAGE, "is damaged"),
        (["r1", "--onnx", "{home}/no/model.onnx"], ExitCode.STORAGE, "cannot write"),
    ],
)
def test_export_errors_name_their_cause(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    made = {"plain": ("vhl", {}), "ping": ("ping", {}), "cifar": ("vhl", {"dataset": "cifar10"})}
    made |= {"unknown": ("vhx", {}), "old": ("vhl", {"wheels": 4}), "wide": ("vhl", {**SETTINGS, "model": "resnet10"})}
    names = {"home": str(home), "best": str(home / "runs" / "r1" / "states" / "best.safetensors")}
    for name, (workload, config) in made.items():
        info = {"id": f"{name[0]}1", "workload": workload, "config": config, "seed": 0, "nodes": ["a"], "clients": 4}
        names[name] = str(RunDirectory.create(tmp_path / name, info).path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    names["broken"] = str(tmp_path / "broken.safetensors")
    given = [argument.format(**names) for argument in arguments]
    onnx = [] if "--onnx" in given else ["--onnx", tmp_path / "model.onnx"]
    assert execute(*given, *onnx, "--home", home) == code
    output = " ".join(capsys.readouterr().err.split())
    assert message in output
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_reported_with_its_extra(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert execute("r1", "--home", home, "--onnx", tmp_path / "model.onnx") == ExitCode.MISSING_EXTRA
    output = capsys.readouterr().err
    assert f"the package '{package}' is not installed" in output
    assert "[export]" in output


def test_a_file_that_differs_from_the_model_is_discarded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the old one")
    write = exporting.export_onnx

    def other(model: torch.nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            model.linear.bias[3] += 0.1  # type: ignore[union-attr, operator]
        write(model, *rest)
        with torch.no_grad():
            model.linear.bias[3] -= 0.1  # type: ignore[union-attr, operator]

    monkeypatch.setattr(exporting, "export_onnx", other)
    assert execute("r1", "--home", home, "--onnx", path) == ExitCode.RUN_FAILED
    assert "differ by 0.1 from the model's" in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
