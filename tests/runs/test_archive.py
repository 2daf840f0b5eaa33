"""Export and import of runs: complete or not at all, and no archive writes outside its directory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
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
    """A run with files of every kind."""
    run = RunDirectory.create(
        tmp_path / "source" / "one",
        {"id": "one", "workload": "ping", "config": {"rounds": 2}, "seed": 3, "nodes": ["a"]},
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


def test_an_imported_run_equals_the_exported_one(run: RunDirectory, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "one.tar")
    assert exported.sha256 == hashlib.sha256((tmp_path / "one.tar").read_bytes()).hexdigest()
    found = import_run(tmp_path / "one.tar", tmp_path / "target", sha256=exported.sha256.upper())
    assert (found.id, found.files, found.bytes) == ("one", exported.files, exported.bytes)
    before = contents(run.path)
    del before[".unfinished.tmp"]
    assert contents(found.path) == before
    assert names(tmp_path / "target") == ["one"]
    assert RunDirectory.open(found.path).read_ledger() == run.read_ledger()
    assert RunDirectory.open(found.path).checkpoints.steps() == [1]
    assert found.path.stat().st_mode & 0o077 == 0


def test_the_archive_is_an_ordinary_tar_file(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getnames()
        assert tar.extractfile("run.json").read() == (run.path / "run.json").read_bytes()  # type: ignore[union-attr]
    assert members[-1] == MANIFEST
    assert "empty.txt" in members


def test_export_without_checkpoints_leaves_them_out(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar", checkpoints=False)
    found = import_run(tmp_path / "one.tar", tmp_path / "target")
    assert not (found.path / "checkpoints").exists()
    assert (found.path / "result.json").exists()


def test_importing_a_taken_id_requires_another_id(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar")
    with pytest.raises(StorageError, match="already contains a run 'one'") as error:
        import_run(tmp_path / "one.tar", run.path.parent)
    assert "--as ID" in error.value.hint
    found = import_run(tmp_path / "one.tar", run.path.parent, name="two")
    assert RunDirectory.open(found.path).info["id"] == "two"
    assert RunDirectory.open(found.path).info["exported_as"] == "one"
    assert names(run.path.parent) == ["one", "two"]
    for name in ("..", "a/b", ".hidden", "x" * 65):
        with pytest.raises(StorageError, match="invalid run id"):
            import_run(tmp_path / "one.tar", run.path.parent, name=name)


def test_exporting_a_link_raises_an_error(run: RunDirectory, tmp_path: Path) -> None:
    (run.path / "link").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="is a link"):
        export_run(run, tmp_path / "one.tar")
    assert not (tmp_path / "one.tar").exists()


# ---- malformed archives ----------------------------------------------------------------------------------------------

RUN = json.dumps({"id": "evil", "workload": "ping", "config": {}, "seed": 0, "nodes": []}).encode()


def manifest(members: Members, **changes: object) -> bytes:
    files = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in members.items()}
    return json.dumps({"format": 1, "id": "evil", "files": files, **changes}).encode()


def packed(members: Members, change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    """A tar of ``members``; ``change`` may modify each header, but not the data."""
    out = io.BytesIO()
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        change(info)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


def valid_members() -> Members:
    return {"run.json": RUN, MANIFEST: manifest({"run.json": RUN})}


def with_file(name: str) -> bytes:
    files = {"run.json": RUN, name: b"x"}
    return packed({**files, MANIFEST: manifest(files)})


def typed(kind: bytes, link: str = "") -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "run.json":
            info.type, info.linkname = kind, link

    return packed(valid_members(), change)


def sized(size: int) -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "run.json":
            info.size = size

    return packed(valid_members(), change)


def _flipped() -> bytes:
    data = bytearray(packed(valid_members()))
    data[520] ^= 1
    return bytes(data)


MALFORMED: dict[str, tuple[bytes, str]] = {
    "dots lead outside": (with_file("../outside"), "outside the run directory"),
    "inner dots lead outside": (with_file("a/../../outside"), "outside the run directory"),
    "absolute path": (with_file("/tmp/outside"), "outside the run directory"),
    "hidden file": (with_file(".ssh/key"), "hidden"),
    "backslash": (with_file("..\\outside"), "outside the run directory"),
    "line break": (with_file("a\nb"), "outside the run directory"),
    "too deep": (with_file("/".join("abcdefghij")), "too deep"),
    "symbolic link": (typed(tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (typed(tarfile.LNKTYPE, "/etc/passwd"), "is a link"),
    "device": (typed(tarfile.CHRTYPE), "only regular files"),
    "pipe": (typed(tarfile.FIFOTYPE), "only regular files"),
    "folder": (typed(tarfile.DIRTYPE), "only regular files"),
    "extended header": (typed(tarfile.XHDTYPE), "only regular files"),
    "long name": (typed(tarfile.GNUTYPE_LONGNAME), "only regular files"),
    "sparse file": (typed(tarfile.GNUTYPE_SPARSE), "only regular files"),
    "one petabyte": (sized(1 << 50), "more than the limit"),
    "negative size": (sized(-5), "negative file size"),
    "file instead of a folder": (
        packed({**(files := {"a": b"x", "a/b": b"x", "run.json": RUN}), MANIFEST: manifest(files)}),
        "cannot unpack",
    ),
    "changed byte": (_flipped(), "differs from the manifest"),
    "file missing from the manifest": (
        packed({"run.json": RUN, "more": b"x", MANIFEST: manifest({"run.json": RUN})}),
        "'more'",
    ),
    "file missing from the archive": (
        packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN, "more": b"x"})}),
        "'more'",
    ),
    "no manifest": (packed({"run.json": RUN}), "does not end with"),
    "truncated": (packed(valid_members())[:900], "in the middle"),
    "data after the end": (packed(valid_members()) + b"x" * 512, "data after its end"),
    "not a tar file": (b"not a tar at all" * 100, "not a run archive"),
    "empty": (b"", "in the middle"),
    "another format": (packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN}, format=2)}), "another version"),
    "id is a path": (
        packed({"run.json": RUN, MANIFEST: manifest({"run.json": RUN}, id="../evil")}),
        "invalid run id",
    ),
    "deeply nested JSON": (packed({"run.json": RUN, MANIFEST: b"[" * 200_000}), "damaged"),
    "no run.json": (packed({"x": b"1", MANIFEST: manifest({"x": b"1"})}), "does not contain a valid run"),
    "run.json is not an object": (
        packed({"run.json": b"[]", MANIFEST: manifest({"run.json": b"[]"})}),
        "does not contain a valid run",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_archives_are_rejected_and_leave_no_files(tmp_path: Path, case: str) -> None:
    data, cause = MALFORMED[case]
    (tmp_path / "evil.tar").write_bytes(data)
    with pytest.raises(StorageError, match=cause):
        import_run(tmp_path / "evil.tar", tmp_path / "home" / "runs")
    assert contents(tmp_path) == {"evil.tar": data}
    assert names(tmp_path / "home" / "runs") == []


def test_the_unmodified_archive_of_these_cases_is_accepted(tmp_path: Path) -> None:
    """So each malformed archive is rejected because of its modification."""
    (tmp_path / "good.tar").write_bytes(packed(valid_members()))
    assert import_run(tmp_path / "good.tar", tmp_path / "runs").id == "evil"


def test_limits_apply_to_all_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"run.json": RUN, "a": bytes(600), "b": bytes(600)}
    (tmp_path / "x.tar").write_bytes(packed({**files, MANIFEST: manifest(files)}))
    with pytest.raises(StorageError, match="'b' in the archive has 600 bytes") as error:
        import_run(tmp_path / "x.tar", tmp_path / "runs", total_bytes=1000)
    assert "--max-gb" in error.value.hint
    monkeypatch.setattr(archive, "FILES", 2)
    with pytest.raises(StorageError, match="more than 2 files"):
        import_run(tmp_path / "x.tar", tmp_path / "runs")


def test_a_missing_archive_and_a_wrong_digest_raise_errors(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        import_run(tmp_path / "none.tar", tmp_path / "runs")
    export_run(run, tmp_path / "one.tar")
    with pytest.raises(StorageError, match="has the SHA-256"):
        import_run(tmp_path / "one.tar", tmp_path / "runs", sha256="00" * 32)


def test_what_a_killed_import_left_is_removed_by_the_next_one(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.tar")
    folder, here = tmp_path / "runs", os.getpid()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for name in (f".import-{killed.pid}-x", ".import-x", f".import-{here}-in-progress"):
        (folder / name / "checkpoints").mkdir(parents=True)
    import_run(tmp_path / "one.tar", folder)
    assert sorted(path.name for path in folder.iterdir()) == [f".import-{here}-in-progress", "one"]
