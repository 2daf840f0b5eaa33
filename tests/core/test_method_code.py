"""Whatever the code of a third-party method raises becomes one typed error."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core import workloads
from farshore.core.errors import ConfigError, MethodError, MissingExtraError
from farshore.server.submission import Submission

HEAD = "from farshore.engines.ping.workload import PingWorkload\n"


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    info = tmp_path / f"{name}-1.dist-info"
    info.mkdir()
    (tmp_path / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[farshore.workloads]\n{name} = {name}:WORKLOAD\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import no_such_package_at_all\n", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("def broken(:\n", "SyntaxError"),
        ("OTHER = 1\n", "AttributeError.*WORKLOAD"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(plugin_3.py, line 1"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("raise BaseException('odd')\n", "BaseException: odd"),
        ("WORKLOAD = 7\n", "AttributeError"),
        (f"{HEAD}class W(PingWorkload):\n    config = dict\nWORKLOAD = W()\n", "pydantic model class"),
        (f"{HEAD}class W(PingWorkload):\n    on_lost_node = 'panic'\nWORKLOAD = W()\n", "'restart' or 'continue'"),
        (f"{HEAD}class W(PingWorkload):\n    name = None\nWORKLOAD = W()\n", "must be strings"),
    ],
)
def test_a_method_that_cannot_be_imported(
    source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"plugin_{request.node.callspec.indices['source']}"
    install(tmp_path, monkeypatch, name, source)
    with pytest.raises(MethodError, match=f"cannot be imported: .*{complaint}") as caught:
        workloads.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", ["roles", "code"])
def test_a_method_that_fails_on_its_configuration(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        f"{HEAD}class W(PingWorkload):\n    def {member}(self, config):\n        raise KeyError('x')\nWORKLOAD = W()\n"
    )
    install(tmp_path, monkeypatch, f"fails_in_{member}", source)
    with pytest.raises(MethodError, match=rf"failed on its configuration: KeyError.*fails_in_{member}.py, line 4"):
        Submission.validate(f"fails_in_{member}", "{}")


def test_errors_of_farshore_keep_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "needs_extra", "raise ModuleNotFoundError(name='transformers.x')\n")
    with pytest.raises(MissingExtraError, match=r"\[text\]"):
        workloads.load("needs_extra")
    with pytest.raises(ConfigError, match="unknown"):
        Submission.validate("ping", '{"unknown": 1}')
