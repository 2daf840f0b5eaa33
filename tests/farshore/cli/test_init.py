"""``farshore init``: projects whose tests pass, that can be simulated, and names that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farshore.cli import main as cli
from farshore.cli.init import kinds, render_project
from farshore.cli.settings import describe
from farshore.core.errors import ExitCode
from farshore.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run each test in a new folder, and forget its project afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARSHORE_PROJECT", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_there_are_three_kinds() -> None:
    assert kinds() == ["federated", "training", "workload"]


@pytest.mark.parametrize("kind", kinds())
def test_a_project_has_a_method_tests_and_instructions_that_are_printed(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["init", "own_method", "--kind", kind]) == 0
    files = {str(path.relative_to("own_method")) for path in Path("own_method").rglob("*") if path.is_file()}
    expected = {"README.md", "own_method.py", "pyproject.toml", "tests/test_own_method.py"}
    assert files == expected | ({"scenario.yaml"} if kind == "federated" else set())
    printed = capsys.readouterr().out
    assert all(f"own_method/{file}" in printed for file in files)
    commands = ["cd own_method", "pip install -e '.[test]'", "pytest", "farshore simulate"]
    readme = Path("own_method/README.md").read_text()
    assert all(command in printed for command in commands)
    assert all(command in readme for command in [*commands[1:], "farshore server up", "farshore node join"])
    assert "farshore run own_method --nodes 2" in readme
    assert not [path for path in Path("own_method").rglob("*") if path.is_file() and "$" in path.read_text()]


@pytest.mark.parametrize("kind", kinds())
def test_a_project_is_free_of_lint_and_formatted(kind: str) -> None:
    assert cli.execute(["init", "own_method", "--kind", kind]) == 0
    for command in (["check", "--select", "E,F,I,B,UP,N,SIM,RUF,C4"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "own_method"]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", kinds())
def test_the_tests_of_a_project_pass(kind: str) -> None:
    assert cli.execute(["init", "own_method", "--kind", kind]) == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd="own_method", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", kinds())
def test_every_setting_of_a_project_is_described(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.execute(["init", f"own_{kind}", "--kind", kind]) == 0
    monkeypatch.syspath_prepend(f"own_{kind}")
    config: Any = __import__(f"own_{kind}").WORKLOAD.config
    own = set(vars(config)["__annotations__"])
    assert len(own) >= 2
    assert [key for key, *_, description in describe(config) if key in own and not description] == []


@pytest.mark.parametrize(("kind", "most"), [("training", 80), ("workload", 60)])
def test_a_method_costs_few_lines_outside_of_its_science(kind: str, most: int) -> None:
    module = render_project("own_method", kind)["own_method.py"]
    head, _, rest = module.partition("# ---- the science")
    science, _, engine = rest.partition("\n# ----")
    assert "def " in science
    lines = [line for line in (head + engine).splitlines() if line.strip()]
    assert len(lines) < most


@pytest.mark.parametrize("kind", ["training", "workload"])
def test_other_projects_are_simulated_on_virtual_nodes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["init", f"own_{kind}", "--kind", kind]) == 0
    os.chdir(f"own_{kind}")
    capsys.readouterr()
    assert cli.execute(["simulate", f"own_{kind}", "--nodes", "2", "--seeds", "0", "--out", "out", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "compared"
    (ledger,) = Path("out").rglob("ledger*.arrows")
    assert ledger.exists()


def test_a_federated_project_is_simulated_to_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["init", "own_method"]) == 0
    capsys.readouterr()
    command = ["simulate", "own_method", "--set", "rounds=25", "--seeds", "0", "--out", "out", "--json"]
    assert cli.execute(command) == 0
    *trials, compared = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {e["arm"] for e in trials if e["event"] == "finished"} == {"FedAvg", "Own method"}
    results = {r["name"]: r for r in compared["results"]}
    # With momentum 25 rounds suffice, without it they do not.
    assert results["Own method"]["best"]["mean"] > results["FedAvg"]["best"]["mean"] + 0.05
    # The velocity stays on the server: both arms send the same bytes.
    assert results["Own method"]["payload"] == results["FedAvg"]["payload"]
    assert Path("out/comparison.png").stat().st_size > 10_000
    run = RunDirectory.open(Path("out/own-method-seed-0"))
    assert run.info["config"]["momentum"] == 0.7
    assert run.info["clients"] == 10
    # A second call trains nothing: all trials have finished.
    assert cli.execute(command) == 0
    (again,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert again["results"] == compared["results"]
    # A different configuration in the same folder is rejected.
    assert cli.execute([*command, "--set", "lr=0.2"]) == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Own-Method"], "use lower-case letters, digits and underscores: 'own_method'"),
        (["class"], "'server_momentum'"),
        (["7days"], "'days'"),
        (["vhl"], "there is already a method 'vhl'"),
        (["torch"], "like 'my_torch'"),
        (["json"], "like 'my_json'"),
        (["tests"], "like 'my_tests'"),
        (["own_method", "--kind", "trainig"], "did you mean --kind training?"),
        (["own_method", "--kind", "x"], "kinds are federated, training, workload"),
    ],
)
def test_names_and_kinds_that_do_not_work_are_refused_with_a_hint(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.execute(["init", *arguments]) == ExitCode.CONFIG
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_nothing_that_exists_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("occupied").mkdir()
    Path("occupied/notes.txt").touch()
    assert cli.execute(["init", "occupied"]) == ExitCode.CONFIG
    assert "occupied already exists" in capsys.readouterr().err
    assert cli.execute(["init", "own_method", "--folder", "occupied"]) == 0
    assert cli.execute(["init", "own_method", "--folder", "occupied"]) == ExitCode.CONFIG
    assert "occupied/own_method.py already exists" in capsys.readouterr().err
    Path("file").touch()
    assert cli.execute(["init", "own_method", "--folder", "file"]) == ExitCode.STORAGE
    assert Path("occupied/notes.txt").exists()


def test_the_templates_are_part_of_the_package() -> None:
    patterns = (ROOT / "setup.py").read_text()
    assert '"template/*/*"' in patterns
    folder = ROOT / "farshore" / "template"
    assert all(path.parent.parent == folder for path in folder.rglob("*") if path.is_file())
