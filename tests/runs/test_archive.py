"""A run moves between machines whole or not at all, and no archive writes outside its directory."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from farshore.core.errors import NotFoundError, StorageError
from farshore.core.transfer import Transfer
from farshore.runs import archive
from farshore.runs.archive import MANIFEST, export_run, import_run
from farshore.runs.directory import RunDirectory

Members = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with a file of every kind."""
    run = RunDirectory.create(
        tmp_path / "here" / "one", {"id": "one", "workload": "ping", "config": {"rounds": 2}, "seed": 3, "nodes": ["a"]}
    )
    with run.open_ledger() as ledger:
        for number in range(1, 2000):
            ledger.record(Transfer("a", "up", "echo", "raw", number, 0, 0, 500, 500, 540, 0, 1.0))
    metrics = run.open_metrics()
    metrics.write(1, {"acc": 0.5})
    metrics.close()
    run.checkpoints.save(1, {}, {"x": 1})
    run.write_result({"acc": 0.5})
    (run.path / "empty.txt").touch()
    (run.path / ".unfinished.tmp").write_text("x")
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_comes_out_as_it_went_in(run: RunDirectory, tmp_path: Path) -> None:
    moved = export_run(run, tmp_path / "one.tar")
    assert moved.sha256 == hashlib.sha256((tmp_path / "one.tar").read_bytes()).hexdigest()
    found = import_run(tmp_path / "one.tar", tmp_path / "there", sha256=moved.sha256.upper())
    assert (found.id, found.files, found.bytes) == ("one", moved.files, moved.bytes)
    before = contents(run.path)
    del before[".unfinished.tmp"]
    assert contents(found.path) == before
    assert names(tmp_path / "there") == ["one"]
    assert RunDirectory.open(found.path).read_ledger() == run.read_ledger()
    assert RunDirectory.open(found.path).checkpoints.steps() == [1]
    assert found.path.stat().st_mode & 0o077 == 0


def test_any_tar_lists_what_was_exported(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getnames()
        assert tar.extractfile("run.json").read() == (run.path / "run.json").read_bytes()  # type: ignore[union-attr]
    assert members[-1] == MANIFEST
    assert "empty.txt" in members


def test_checkpoints_stay_if_they_should(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar", checkpoints=False)
    found = import_run(tmp_path / "one.tar", tmp_path / "there")
    assert not (found.path / "checkpoints").exists()
    assert (found.path / "result.json").exists()


def test_an_id_that_is_taken_needs_another(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar")
    with pytest.raises(StorageError, match="already holds a run 'one'") as error:
        import_run(tmp_path / "one.tar", run.path.parent)
    assert "--as ID" in error.value.hint
    found = import_run(tmp_path / "one.tar", run.path.parent, name="two")
    assert RunDirectory.open(found.path).info["id"] == "two"
    assert RunDirectory.open(found.path).info["exported_as"] == "one"
    assert names(run.path.parent) == ["one", "two"]
    for name in ("..", "a/b", ".hidden", "x" * 65):
        with pytest.raises(StorageError, match="is no id"):
            import_run(tmp_path / "one.tar", run.path.parent, name=name)


def test_links_do_not_travel(run: RunDirectory, tmp_path: Path) -> None:
    (run.path / "link").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="is a link"):
        export_run(run, tmp_path / "one.tar")
    assert not (tmp_path / "one.tar").exists()


# ---- archives that nobody exported -----------------------------------------------------------------------------------

RUN = json.dumps({"id": "evil", "workload": "ping", "config": {}, "seed": 0, "nodes": []}).encode()


def manifest(members: Members, **changes: object) -> bytes:
    files = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in members.items()}
    return json.dumps({"format": 1, "id": "evil", "files": files, **changes}).encode()


def packed(members: Members, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    """A tar of ``members`` whose headers ``change`` has had in hand; sizes of the data are what they are."""
    out = io.BytesIO()
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        change(info)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


def sound() -> Members:
    return {"run.json": RUN, MANIFEST: manifest({"run.json": RUN})}


def with_file(name: str) -> bytes:
    files = {"run.json": RUN, name: b"x"}
    return packed({**files, MANIFEST: manifest(files)})


def typed(kind: bytes, link: str = "") -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "run.json":
            info.type, info.linkname = kind, link

    return packed(sound(), change)


def sized(size: int) -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "run.json":
            info.size = size

    return packed(sound(), change)


def _flipped() -> bytes:
    data = bytearray(packed(sound()))
    data[520] ^= 1
    return bytes(data)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "out by dots": (with_file("../outside"), "leads out"),
    "out by dots within": (with_file("a/../../outside"), "leads out"),
    "absolute": (with_file("/tmp/outside"), "leads out"),
    "hidden": (with_file(".ssh/key"), "hidden"),
    "a backslash": (with_file("..\\outside"), "leads out"),
    "a line break": (with_file("a\nb"), "leads out"),
    "too deep": (with_file("/".join("abcdefghij")), "too deep"),
    "symbolic link": (typed(tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (typed(tarfile.LNKTYPE, "/etc/passwd"), "is a link"),
    "device": (typed(tarfile.CHRTYPE), "only files"),
    "pipe": (typed(tarfile.FIFOTYPE), "only files"),
    "folder": (typed(tarfile.DIRTYPE), "only files"),
    "extended header": (typed(tarfile.XHDTYPE), "only files"),
    "long name": (typed(tarfile.GNUTYPE_LONGNAME), "only files"),
    "sparse file": (typed(tarfile.GNUTYPE_SPARSE), "only files"),
    "a petabyte": (sized(1 << 50), "more than there is room for"),
    "a size below zero": (sized(-5), "below zero"),
    "a file over a folder": (
        packed({**(files := {"a": b"x", "a/b": b"x", "run.json": RUN}), MANIFEST: manifest(files)}),
        "cannot unpack",
    ),
    "another byte": (_flipped(), "not what was exported"),
    "a file that is not told": (
        packed({"run.json": RUN, "more": b"x", MANIFEST: manifest({"run.json": RUN})}),
        "'more'",
    ),
    "a told file that is not there": (
        packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN, "more": b"x"})}),
        "'more'",
    ),
    "no manifest": (packed({"run.json": RUN}), "does not end with"),
    "cut off": (packed(sound())[:900], "in the middle"),
    "something behind it": (packed(sound()) + b"x" * 512, "goes on after its end"),
    "no tar": (b"not a tar at all" * 100, "no archive of a run"),
    "nothing": (b"", "in the middle"),
    "another format": (packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN}, format=2)}), "another version"),
    "an id that is a path": (
        packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN}, id="../evil")}),
        "which is no id",
    ),
    "deep JSON": (packed({"run.json": RUN, MANIFEST: b"[" * 200_000}), "damaged"),
    "no run": (packed({"x": b"1", MANIFEST: manifest({"x": b"1"})}), "holds no sound run"),
    "a run.json that is none": (
        packed({"run.json": b"[]", MANIFEST: manifest({"run.json": b"[]"})}),
        "holds no sound run",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path: Path, case: str) -> None:
    data, cause = HOSTILE[case]
    (tmp_path / "evil.tar").write_bytes(data)
    with pytest.raises(StorageError, match=cause):
        import_run(tmp_path / "evil.tar", tmp_path / "home" / "runs")
    assert contents(tmp_path) == {"evil.tar": data}
    assert names(tmp_path / "home" / "runs") == []


def test_the_sound_archive_of_these_cases_is_taken(tmp_path: Path) -> None:
    """So that each of them is refused for what was changed in it."""
    (tmp_path / "good.tar").write_bytes(packed(sound()))
    assert import_run(tmp_path / "good.tar", tmp_path / "runs").id == "evil"


def test_limits_are_of_all_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"run.json": RUN, "a": bytes(600), "b": bytes(600)}
    (tmp_path / "x.tar").write_bytes(packed({**files, MANIFEST: manifest(files)}))
    with pytest.raises(StorageError, match="'b' has 600 bytes") as error:
        import_run(tmp_path / "x.tar", tmp_path / "runs", total_bytes=1000)
    assert "--max-gb" in error.value.hint
    monkeypatch.setattr(archive, "FILES", 2)
    with pytest.raises(StorageError, match="more than 2 files"):
        import_run(tmp_path / "x.tar", tmp_path / "runs")


def test_what_is_not_there_and_what_is_another_file(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        import_run(tmp_path / "none.tar", tmp_path / "runs")
    export_run(run, tmp_path / "one.tar")
    with pytest.raises(StorageError, match="has the SHA-256"):
        import_run(tmp_path / "one.tar", tmp_path / "runs", sha256="00" * 32)
