"""App archives: the same hash on every machine, and no file outside the app's folder."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from pathlib import Path

import pytest

from farshore.core.errors import ConfigError, RefusedError
from farshore.engines.flower import archive
from farshore.engines.flower.archive import pack_app, read_archive, unpack_app


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "inner").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "inner" / "client.py").write_text("x = 1\n")
    return folder


def _zip(**files: bytes) -> str:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return base64.b64encode(data.getvalue()).decode()


def test_code_is_packed_and_unpacked_and_other_files_are_left_out(app: Path, tmp_path: Path) -> None:
    for name in ("model.pt", ".secret.py", "inner/__pycache__/client.py", ".venv/lib.py"):
        (app / name).parent.mkdir(exist_ok=True)
        (app / name).write_text("no")
    (app / "link.py").symlink_to("/etc/passwd")
    packed = pack_app(app, {})
    target = unpack_app(packed.text, packed.digest, tmp_path / "there" / "app")
    assert {str(p.relative_to(target)) for p in target.rglob("*.*")} == {"pyproject.toml", "inner/client.py"}
    assert (target / "inner" / "client.py").read_text() == "x = 1\n"


def test_hash_depends_on_names_and_contents_only(app: Path) -> None:
    first = pack_app(app, {}).digest
    os.utime(app / "pyproject.toml", (1, 1))
    (app / "pyproject.toml").chmod(0o600)
    assert pack_app(app, {}).digest == first
    (app / "inner" / "client.py").write_text("x = 2\n")
    second = pack_app(app, {}).digest
    (app / "inner" / "client.py").rename(app / "inner" / "clients.py")
    assert len({first, second, pack_app(app, {}).digest}) == 3


def test_fab_include_and_fab_exclude_select_files(app: Path) -> None:
    for name in ("table.csv", "notes.md", "inner/big.csv"):
        (app / name).write_text("1")
    packed = pack_app(app, {"fab-include": ["**/*.csv", "**/*.py"], "fab-exclude": ["/inner/*.csv"]})
    assert set(read_archive(packed.text)) == {"pyproject.toml", "inner/client.py", "table.csv"}


@pytest.mark.parametrize(
    "name",
    ["../out.py", "a/../../out.py", "/etc/cron.d/x", "a\\..\\out.py", "C:/x.py", "./x.py", "a//b.py", "a/", "x" * 300],
)
def test_file_names_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    text = _zip(**{name: b"x"})
    with pytest.raises(RefusedError, match="invalid file name"):
        unpack_app(text, "0" * 64, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_archive_with_another_hash_is_refused(app: Path, tmp_path: Path) -> None:
    packed = pack_app(app, {})
    (app / "inner" / "client.py").write_text("import os\n")
    with pytest.raises(RefusedError, match="have the hash"):
        unpack_app(pack_app(app, {}).text, packed.digest, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_zip_bomb_is_refused_before_decompression(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = _zip(**{"a.py": bytes(1 << 17)})
    monkeypatch.setattr(archive, "UNPACKED_BYTES", 1 << 16)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it was decompressed"))
    with pytest.raises(RefusedError, match="more than"):
        read_archive(bomb)


def test_wrong_file_size_is_refused() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.py", bytes(5000))
    real, false = (5000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert data.getvalue().count(real) == 2  # in the local header and in the central directory
    with pytest.raises(RefusedError):
        read_archive(base64.b64encode(data.getvalue().replace(real, false)).decode())


@pytest.mark.parametrize("text", ["", "no base64!", base64.b64encode(b"no zip").decode()])
def test_damaged_archive_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="damaged"):
        read_archive(text)


def test_file_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(RefusedError, match="twice"):
        read_archive(_zip(**{"a.py": b"1", "A.py": b"2"}))


def test_app_that_exceeds_the_limits_is_not_packed(app: Path) -> None:
    (app / "noise.json").write_bytes(os.urandom(3 << 20))
    with pytest.raises(ConfigError, match="fab-exclude"):
        pack_app(app, {})
