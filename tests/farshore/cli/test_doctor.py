"""``farshore doctor``: detected problems, their hints, and the exit code."""

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
from farshore.core.packages import install_command
from farshore.server.certificates import self_signed


@pytest.fixture
def occupied_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_checks_pass_on_a_working_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["doctor", "--json", "--home", str(tmp_path / "home"), "--port", str(free_port())]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    names = {check["name"] for check in report["checks"]}
    assert {"versions", "packages", "port", "clock", "certificate", "disk", "home", "TLS", "extra train"} <= names
    assert not (tmp_path / "home").exists(), "checks must not create files"


def test_an_occupied_port_fails_with_its_exit_code(
    occupied_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["doctor", "--home", str(tmp_path), "--port", str(occupied_port)]) == ExitCode.PORT_IN_USE
    out = capsys.readouterr().out
    assert "BROKEN  port" in out
    assert "--port" in out


def test_a_port_used_by_this_machines_server_passes(occupied_port: int, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "address").write_text(f"127.0.0.1:{occupied_port}\n")
    assert checks.check_port(occupied_port, tmp_path).state == "ok"


def test_an_expired_or_future_certificate_fails(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "certificate.pem").write_bytes(self_signed(days=30).certificate)
    now = datetime.datetime.now(datetime.UTC)
    (good,) = checks.check_certificates(tmp_path, now)
    (late,) = checks.check_certificates(tmp_path, now + datetime.timedelta(days=31))
    (early,) = checks.check_certificates(tmp_path, now - datetime.timedelta(days=1))
    assert (good.state, late.state, early.state) == ("ok", "broken", "broken")
    assert "expired" in late.detail
    assert late.exit_code == ExitCode.REFUSED


def test_a_damaged_certificate_fails(tmp_path: Path) -> None:
    (tmp_path / "nodes" / "a").mkdir(parents=True)
    (tmp_path / "nodes" / "a" / "server.pem").write_text("rubbish")
    (check,) = checks.check_certificates(tmp_path)
    assert (check.state, check.exit_code) == ("broken", ExitCode.STORAGE)


def test_a_clock_in_the_past_fails() -> None:
    assert checks.check_clock().state == "ok"
    assert checks.check_clock(now=0.0).state == "broken"


def test_an_old_python_fails() -> None:
    assert checks.check_python((3, 11, 0)).state == "ok"
    assert checks.check_python((3, 10, 9)).exit_code == ExitCode.VERSION


def test_missing_and_incompatible_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"protobuf": "5.29.1"}
    monkeypatch.setattr(checks, "installed", lambda name: versions.get(name, "1.0"))
    assert checks.check_packages().hint == "pip install 'protobuf>=6.33,<7'"
    versions["protobuf"] = "6.40.0"
    assert checks.check_packages().state == "ok"
    versions["grpcio"] = ""
    assert "grpcio" in checks.check_packages().detail


def test_a_missing_extra_is_absent_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "installed", lambda name: "" if name == "torch" else "1.0")
    found = {check.name: check for check in checks.check_extras()}
    assert found["extra train"].state == "absent"
    assert found["extra train"].hint == install_command("train")
    assert found["extra server"].state == "ok"


def test_a_full_disk_and_an_unwritable_folder_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = checks.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.check_disk(tmp_path / "a" / "b").exit_code == ExitCode.STORAGE
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert checks.check_writable(file).state == "broken"


def test_node_to_node_check_depends_on_torch_and_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    found = checks.check_ranks()
    assert found.state == "ok"
    assert "gloo all-reduce on loopback" in found.detail
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    assert "this build of torch lacks it" in checks.check_ranks().detail
    monkeypatch.setattr(checks, "installed", lambda name: "")
    found = checks.check_ranks()
    assert (found.state, found.hint) == ("absent", install_command("train"))


def test_the_checked_extras_match_pyproject() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    declared = project["project"]["optional-dependencies"]
    for extra, packages in checks.EXTRAS.items():
        requirements = " ".join(declared[extra])
        assert all(package in requirements for package in packages), extra


def test_little_shared_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = checks.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=64_000_000))
    found = checks.check_shared_memory(tmp_path)
    assert (found.state, found.exit_code) == ("absent", ExitCode.OK)
    assert "64 MB free" in found.detail
    assert "--shm-size" in found.hint
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000_000))
    assert checks.check_shared_memory(tmp_path).state == "ok"
