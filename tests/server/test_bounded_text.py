"""Nothing that nodes, users or old stores hold makes a list, a run or its events too large for one message."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from farshore.core.bounds import MAX_ERROR, bounded_values, cut, cut_json, cut_start
from farshore.core.errors import ConfigError, RefusedError
from farshore.core.nodes import RoleCount, RoleRequest
from farshore.proto import control_pb2 as pb
from farshore.runs.directory import RunDirectory
from farshore.runs.store import RunStore
from farshore.server.profiles import check_hello
from farshore.server.role_requests import to_json
from farshore.server.run import Run
from farshore.server.run_log import RunLog
from farshore.server.run_messages import PAGE_BYTES, changes, full, page, summary
from farshore.server.submission import check_request

sys.path.insert(0, str(Path(__file__).parent))
from raw_node import RawNode

_GRPC_LIMIT = 4 << 20


def _run(folder: Path, **values: Any) -> Run:
    run = Run("r", "ping", "{}", 1, folder, RunLog(folder / "log.txt"))
    for name, value in values.items():
        setattr(run, name, value)
    return run


def test_cut_text_says_how_much_is_missing() -> None:
    assert cut("short", 10) == "short"
    assert cut("x" * 1010, 10) == "x" * 10 + "… (1,000 more characters)"
    assert cut_start("x" * 1000 + "the end", 7) == "(1,000 more characters) …the end"


def test_cut_json_keeps_the_small_values_of_a_result() -> None:
    result = {"rows": list(range(100_000)), "score": 0.5, "name": "y"}
    kept = json.loads(cut_json(json.dumps(result), 1000, "result.json"))
    assert kept["score"] == 0.5
    assert kept["name"] == "y"
    assert kept["rows"] == "(688,890 characters; see result.json)"
    many = json.loads(cut_json(json.dumps({f"k{i}": "x" * 50 for i in range(1000)}), 2000, "result.json"))
    assert "values; see result.json" in many["left out"]
    assert len(json.dumps(many)) < 2000
    assert json.loads(cut_json("[" * 5000, 100, "f")) == {"left out": "5,000 characters; see f"}


def test_progress_values_are_bounded() -> None:
    values = bounded_values({"loss": 0.5, "unit": "u" * 5000, **{f"m{i}": i for i in range(5000)}})
    assert values["loss"] == 0.5
    assert len(json.dumps(values)) < 10_000
    kinds = bounded_values({"kinds": {"up": {"k" * 100 + str(i): 1 for i in range(5000)}}})
    assert len(kinds["kinds"]["up"]) == 100


def test_the_largest_run_fits_one_message_in_full_and_one_page_as_a_summary(tmp_path: Path) -> None:
    names = {f"node-{i}".ljust(64, "x"): "role" * 10 for i in range(20_000)}
    run = _run(
        tmp_path,
        config_json=json.dumps({"text": "é" * (5 << 20)}, ensure_ascii=False),
        result_json=json.dumps({"text": "x" * (5 << 20), "score": 1}),
        reason="y" * (5 << 20),
        cohort=names,
    )
    assert summary(run).ByteSize() <= PAGE_BYTES
    assert full(run).ByteSize() < _GRPC_LIMIT
    assert json.loads(full(run).result_json)["score"] == 1
    assert "characters; see run.json" in json.loads(full(run).config_json)["text"]


def test_pages_are_bounded_in_bytes_and_complete(tmp_path: Path) -> None:
    runs = [_run(tmp_path, id=str(i), reason="x" * MAX_ERROR) for i in range(1500)]
    seen, start, pages = [], 0, 0
    while start or not pages:
        found, start = page(runs, start, 0, summary)
        assert sum(info.ByteSize() for info in found) <= PAGE_BYTES
        seen += [info.id for info in found]
        pages += 1
    assert seen == [str(i) for i in range(1500)]
    assert pages > 3
    assert [info.id for info in page(runs, 7, 2, summary)[0]] == ["7", "8"]


def test_an_event_has_only_what_changed(tmp_path: Path) -> None:
    run = _run(tmp_path, cohort={f"node-{i}": "node" for i in range(300)}, state="running", reason="waiting for x")
    before = summary(run)
    first = changes(pb.RunInfo(), before)
    assert {"id", "nodes", "state"} <= set(first.changed)
    run.done, run.reason = 5, ""
    event = changes(before, summary(run))
    assert sorted(event.changed) == ["done", "reason"]
    assert event.ByteSize() < 60
    before.MergeFrom(event.run)  # what a client does, but for clearing
    assert before.done == 5
    assert not changes(summary(run), summary(run)).changed


def test_texts_of_a_hello_are_cut_and_names_are_refused() -> None:
    hello = pb.Hello(profile=pb.NodeProfile(os="x" * (5 << 20)), versions=pb.Versions(torch="y" * (1 << 20)))
    hello.profile.accelerators.add(kind="cuda", name="z" * 5000)
    check_hello(hello)
    assert hello.ByteSize() < 1000
    assert hello.profile.os.endswith("more characters)")
    running = [pb.RunningProgram(run_id=str(i)) for i in range(2000)]
    with pytest.raises(RefusedError, match="at most 1000 programs"):
        check_hello(pb.Hello(running=running))


@pytest.mark.parametrize(
    "request_",
    [
        pb.SubmitRequest(config_json="x" * (3 << 20) + "x"),
        pb.SubmitRequest(workload="x" * 1000),
        pb.SubmitRequest(nodes=["x"] * 20_000),
        pb.SubmitRequest(data={"x": "y" * 10_000}),
    ],
    ids=["configuration", "method", "nodes", "path"],
)
def test_a_request_that_is_too_large_is_refused(request_: pb.SubmitRequest) -> None:
    with pytest.raises(ConfigError):
        check_request(request_)


def test_one_message_of_a_million_lines_is_one_bounded_append(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt")
    log.write("node", ["a"] * 1_000_000)
    lines, _ = log.read(0)
    assert len(lines) == 2001
    assert lines[-1].endswith("node: … (998,000 more lines of this message)")
    log.write("node", ["b" * (5 << 20)])
    assert (tmp_path / "log.txt").stat().st_size < 200_000


def test_a_line_longer_than_a_block_does_not_stop_its_followers(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"x" * 5000 + b"\nnext\n")
    log = RunLog(tmp_path / "log.txt")
    found, offset = [], 0
    while (read := log.read(offset, 1000))[0]:
        found += read[0]
        offset = read[1]
    assert found[-1] == "next"


def test_a_full_disk_loses_log_lines_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog(tmp_path / "missing" / "log.txt")
    log.write("run", ["a"])
    log.write("run", ["b"])
    assert len([record for record in caplog.records if "cannot write" in record.message]) == 1


MODULE = """
from typing import Any
from pydantic import BaseModel
from farshore.engines.ping.config import PingConfig
from farshore.engines.ping.workload import PingWorkload

class Config(PingConfig):
    text: str = ""

class Bulky(PingWorkload):
    name = "bulky"
    config: type[BaseModel] = Config

WORKLOAD = Bulky()
"""


@pytest.mark.process
@pytest.mark.timeout(110)
def test_huge_configurations_errors_and_profiles_leave_lists_runs_and_followers_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    info = tmp_path / "site" / "bulky-1.dist-info"
    info.mkdir(parents=True)
    (info.parent / "bulky.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bulky\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[farshore.workloads]\nbulky = bulky:WORKLOAD\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")]))
    _old_store(tmp_path / "home")
    cloud = start(home=tmp_path / "home", insecure=True)
    for _ in range(3):
        cloud.submit({"text": "t" * 1_100_000}, method="bulky", nodes=("nobody",))
    with pytest.raises(ConfigError, match=r"at most 3\.1 MB"), cloud.admin() as admin:
        admin.submit("bulky", {"text": "t" * 4_000_000}, node_count=1)
    profile = pb.NodeProfile(os="o" * 5_000_000)
    with RawNode(cloud, "evil", profile=profile) as evil, cloud.admin() as admin:
        run_id = cloud.submit({"text": "t" * 1_100_000, "rounds": 1}, method="bulky", nodes=("evil",))
        command = next(evil.commands).start
        exited = pb.ProgramExited(
            run_id=command.run_id, epoch=command.epoch, exit_code=1, error="e" * 5_000_000, traceback="t" * 2_000_000
        )
        evil.send(pb.NodeEvent(exited=exited))
        failed = cloud.when(run_id, "failed")
        assert "more characters)" in failed.reason
        assert [node.name for node in admin.nodes()] == ["evil"]
        listed = admin.runs()
        assert len(listed) == 9
        assert sum(run.ByteSize() for run in listed) < 20_000
        assert len(json.loads(admin.run(run_id).config_json)["text"]) == 1_100_000
        for run in listed:
            assert admin.run(run.id).ByteSize() < _GRPC_LIMIT
            events = list(admin.follow(run.id, follow=False, logs=True))
            assert sum(event.ByteSize() for event in events) < 500_000
        assert len(next(iter(RunDirectory(Path(failed.directory)).read_failures()))["error"]) <= 2000


def _old_store(home: Path) -> None:
    """Write a store of a server that had no bounds."""
    home.mkdir()
    store = RunStore(home / "runs.sqlite")
    for number in range(5):
        path = home / "runs" / f"old-{number}"
        path.mkdir(parents=True)
        store.create_run(
            "ping",
            id=f"old-{number}",
            config_json=json.dumps({"text": "c" * 6_000_000}),
            directory=str(path),
            roles_json=to_json((RoleRequest("node", RoleCount(1, 1)),), {}),
            state="failed",
            reason="r" * 3_000_000,
            result_json=json.dumps({"text": "d" * 5_000_000, "score": 1}),
        )
    store.close()
