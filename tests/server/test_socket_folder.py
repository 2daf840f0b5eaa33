"""Sockets of run processes have short paths, wherever temporary files go."""

from __future__ import annotations

import socket
import stat
import tempfile
from pathlib import Path

import pytest

from farshore.core.errors import ConfigError
from farshore.runs.ids import new_run_id
from farshore.server import socket_folder
from farshore.server.socket_folder import SocketFolder


def test_a_deep_folder_for_temporary_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = SocketFolder("0123456789abcdef")
    try:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        path = folder.socket(new_run_id(), 999)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        assert len(str(path)) <= 103
    finally:
        folder.remove()
    assert not folder.path.exists()


def test_the_longest_folder_that_is_used_has_room_for_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    base = "b" * socket_folder._LONGEST_BASE
    assert len(f"{base}/farshore-{'0' * 12}/{'r' * 24}-999") <= 103


def test_without_a_short_folder_the_error_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_folder, "_LONGEST_BASE", 3)
    with pytest.raises(ConfigError, match="too long for sockets") as caught:
        SocketFolder("0123456789abcdef")
    assert "TMPDIR" in str(caught.value.hint)
