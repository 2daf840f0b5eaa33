"""``farshore doctor`` finds what is broken, says what to do, and ends with the code of what it found."""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from farshore.cli import checks
from farshore.cli import main as cli
from farshore.core.errors import ExitCode
from farshore.server.certificates import self_signed


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_sound_machine_is_found_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["doctor", "--json", "--home", str(tmp_path / "home"), "--port", str(free_port())]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    names = {check["name"] for check in told["checks"]}
    assert {"versions", "packages", "port", "clock", "certificate", "disk", "home", "TLS", "extra train"} <= names
    assert not (tmp_path / "home").exists(), "looking must not make anything"


def test_a_taken_port_is_broken_and_ends_with_its_code(
    taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["doctor", "--home", str(tmp_path), "--port", str(taken)]) == ExitCode.PORT_IN_USE
    out = capsys.readouterr().out
    assert "BROKEN  port" in out
    assert "--port" in out


def test_the_port_of_the_own_server_is_no_fault(taken: int, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "address").write_text(f"127.0.0.1:{taken}\n")
    assert checks.check_port(taken, tmp_path).state == "ok"


def test_an_expired_certificate_is_found(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "certificate.pem").write_bytes(self_signed(days=30).certificate)
    now = datetime.datetime.now(datetime.UTC)
    (good,) = checks.check_certificates(tmp_path, now)
    (late,) = checks.check_certificates(tmp_path, now + datetime.timedelta(days=31))
    (early,) = checks.check_certificates(tmp_path, now - datetime.timedelta(days=1))
    assert (good.state, late.state, early.state) == ("ok", "broken", "broken")
    assert "expired" in late.detail
    assert late.exit_code == ExitCode.REFUSED


def test_a_damaged_certificate_is_found(tmp_path: Path) -> None:
    (tmp_path / "nodes" / "a").mkdir(parents=True)
    (tmp_path / "nodes" / "a" / "server.pem").write_text("rubbish")
    (check,) = checks.check_certificates(tmp_path)
    assert (check.state, check.exit_code) == ("broken", ExitCode.STORAGE)


def test_a_clock_in_the_past_is_found() -> None:
    assert checks.check_clock().state == "ok"
    assert checks.check_clock(now=0.0).state == "broken"


def test_an_old_python_is_found() -> None:
    assert checks.check_python((3, 11, 0)).state == "ok"
    assert checks.check_python((3, 10, 9)).exit_code == ExitCode.VERSION


def test_missing_and_unfit_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"protobuf": "5.29.1"}
    monkeypatch.setattr(checks, "installed", lambda name: versions.get(name, "1.0"))
    assert checks.check_packages().hint == "pip install 'protobuf>=6.33,<7'"
    versions["protobuf"] = "6.40.0"
    assert checks.check_packages().state == "ok"
    versions["grpcio"] = ""
    assert "grpcio" in checks.check_packages().detail


def test_a_missing_extra_is_no_fault_and_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "installed", lambda name: "" if name == "torch" else "1.0")
    found = {check.name: check for check in checks.check_extras()}
    assert found["extra train"].state == "absent"
    assert found["extra train"].hint == "pip install 'farshore[train]'"
    assert found["extra server"].state == "ok"


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = checks.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.check_disk(tmp_path / "a" / "b").exit_code == ExitCode.STORAGE
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert checks.check_writable(file).state == "broken"


def test_whether_nodes_could_be_ranks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    found = checks.check_ranks()
    assert found.state == "ok"
    assert "gloo adds up on loopback" in found.detail
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    assert "built without it" in checks.check_ranks().detail
    monkeypatch.setattr(checks, "installed", lambda name: "")
    found = checks.check_ranks()
    assert (found.state, found.hint) == ("absent", "pip install 'farshore[train]'")


def test_the_extras_of_the_doctor_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    declared = project["project"]["optional-dependencies"]
    for extra, packages in checks.EXTRAS.items():
        wanted = " ".join(declared[extra])
        assert all(package in wanted for package in packages), extra
