"""A queue in one process: results exactly once, whatever happens to nodes, items and the run process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ConfigError
from farshore.core.message import Message
from farshore.core.session import NodeSession
from farshore.core.transfer import Transfer
from farshore.engines.work_queue.item import ItemResult, Outcome, WorkItem
from farshore.engines.work_queue.protocol import Deal, Hello, Result
from farshore.engines.work_queue.records import STREAM, decode, encode
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.state_store import StateStore
from farshore.simulations.in_process import InProcessRun

from .squares import WORKLOAD, Squares, SquaresConfig, work_done

Progress = Callable[[int, int, Mapping[str, Any]], None]


def queue(folder: Path, *nodes: str, workload: Squares = WORKLOAD, name: str = "run", **settings: Any) -> InProcessRun:
    config = SquaresConfig(folder=str(folder), **settings)
    return InProcessRun(workload, config, folder / name, nodes or ("a",))


def once(at: int, act: Callable[[], None]) -> Progress:
    """Act when at least ``at`` items are done."""
    pending = [act]

    def on_progress(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done >= at and pending:
            pending.pop()()

    return on_progress


def records(folder: Path, name: str = "run") -> list[ItemResult]:
    store = StateStore(CheckpointStore(folder / name / "server"), folder / name / "server" / "streams")
    return [decode(record) for record in store.stream(STREAM)]


def expected(items: int) -> list[int]:
    return [n**2 for n in range(items)]


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("slots", [1, 3])
def test_the_results_do_not_depend_on_the_number_of_nodes_or_slots(tmp_path: Path, nodes: int, slots: int) -> None:
    one = queue(tmp_path, name="one").run()
    many = queue(tmp_path, *"abcd"[:nodes], name="many", slots=slots).run()
    assert many == one
    assert one["squares"] == expected(20)
    digests = [CheckpointStore(tmp_path / name / "server").load(20)[0]["digest"].tobytes() for name in ("one", "many")]
    assert digests[0] == digests[1]


def test_every_item_is_recorded_once_with_its_place_although_nodes_die_join_and_return(tmp_path: Path) -> None:
    run = queue(tmp_path, "a", "b", items=60, pause=0.005)
    acts = iter([(5, lambda: run.kill("a")), (15, lambda: run.join("c")), (30, lambda: run.kill("b"))])
    due = list(acts)

    def on_progress(done: int, total: int, values: Mapping[str, Any]) -> None:
        if due and done >= due[0][0]:
            due.pop(0)[1]()

    run.on_progress = on_progress
    assert run.run()["squares"] == expected(60)
    found = records(tmp_path)
    assert Counter(result.item.config["number"] for result in found) == Counter(range(60))
    assert {result.node for result in found} == {"a", "b", "c"}, "who joins and returns is given items"


def test_a_killed_run_process_repeats_nothing_that_was_finished(tmp_path: Path) -> None:
    def power_cut() -> None:
        raise RuntimeError("power cut")

    whole = queue(tmp_path, "a", "b", name="whole").run()
    (tmp_path / "work.txt").unlink()
    broken = queue(tmp_path, "a", "b")
    broken.on_progress = once(8, power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.run()
    finished = {result.item.config["number"] for result in records(tmp_path)}
    assert len(finished) >= 8
    before = Counter(work_done(tmp_path))
    assert queue(tmp_path, "b", "c").run() == whole
    again = Counter(work_done(tmp_path)) - before
    assert not finished & again.keys(), "a finished item was done again"
    assert len(records(tmp_path)) == 20


def test_items_may_depend_on_the_results_of_earlier_ones_also_after_a_resume(tmp_path: Path) -> None:
    whole = queue(tmp_path, waves=3, items=5, name="whole").run()
    assert whole["squares"] == expected(15)

    def power_cut() -> None:
        raise RuntimeError("power cut")

    broken = queue(tmp_path, waves=3, items=5)
    broken.on_progress = once(7, power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.run()
    assert queue(tmp_path, waves=3, items=5).run() == whole


def test_a_failing_item_is_tried_on_another_node_and_recorded_with_its_cause(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    run = queue(tmp_path, "a", "b", items=10, fail=(3, 7), pause=0.01)
    run.on_progress = lambda done, total, values: seen.append(values)
    result = run.run()
    assert result["failed_items"] == 2
    assert result["squares"] == [n**2 for n in range(10) if n not in (3, 7)]
    error, attempts = result["errors"]["3"]
    assert "ValueError: 3 is unlucky" in error
    assert "2 times, last on" in error
    assert attempts == 2
    assert Counter(work_done(tmp_path))[3] == 2
    assert seen[-1]["failed_items"] == 2
    assert "is unlucky" in seen[-1]["why"]
    assert any("on a" in str(values["running"]) for values in seen)
    tried_on = {result.index: result.node for result in records(tmp_path)}
    assert tried_on.keys() == set(range(10))


def test_failed_items_are_not_repeated_by_a_resumed_run(tmp_path: Path) -> None:
    def power_cut() -> None:
        raise RuntimeError("power cut")

    broken = queue(tmp_path, fail=(0,))
    broken.on_progress = once(10, power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.run()
    result = queue(tmp_path, fail=(0,)).run()
    assert result["failed_items"] == 1
    assert Counter(work_done(tmp_path))[0] == 2


@pytest.mark.timeout(60)
def test_a_straggler_is_done_by_a_second_node_and_the_first_attempt_is_cancelled(tmp_path: Path) -> None:
    """The item would wait forever on the first node; the run ends at all because its attempt there is cancelled."""
    result = queue(tmp_path, "a", "b", items=8, pause=0.05, hold={5: "held"}).run()
    assert result["squares"] == expected(8)
    assert Counter(work_done(tmp_path)) == Counter([*range(8), 5])
    assert Counter(r.item.config["number"] for r in records(tmp_path)) == Counter(range(8))


def test_inputs_travel_once_per_node_and_not_again_in_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("hello" * 100)
    sent: list[Transfer] = []

    def run(name: str) -> dict[str, Any]:
        made = queue(tmp_path, "a", "b", name=name, inputs=("words.txt",))
        made.data = {"words.txt": tmp_path / "words.txt"}
        made.recorder, made.cache = sent.append, tmp_path / "cache"
        made.__post_init__()
        return made.run()

    assert run("first")["texts"] == ["hello" * 100]
    received = Counter(row.node for row in sent if row.kind == "asset" and row.direction == "down")
    assert received == {"a": 1, "b": 1}
    sent.clear()
    assert run("second")["texts"] == ["hello" * 100]
    assert not [row for row in sent if row.kind == "asset"]


def test_an_item_that_is_in_the_queue_twice_is_refused(tmp_path: Path) -> None:
    class Twice(Squares):
        def items(self, *arguments: Any) -> list[WorkItem]:
            return [WorkItem({"number": 1}), WorkItem({"number": 1})]

    with pytest.raises(ConfigError, match="an item twice"):
        queue(tmp_path, workload=Twice()).run()


def test_a_node_that_answers_with_nonsense_is_dismissed_and_its_items_are_done_by_others(tmp_path: Path) -> None:
    class OneLies(Squares):
        def node_program(self, session: NodeSession, config: Any) -> None:
            if session.node != "liar":
                super().node_program(session, config)
                return
            session.channel.send(Hello(1).message())
            deal = Deal.read(session.channel.receive(), "the server")
            session.channel.send(Message("result", fields={"deal": deal.deal, "seconds": 0.1, "x.y": 1.0}))
            session.channel.receive()  # raises: it is dismissed

    result = queue(tmp_path, "liar", "a", workload=OneLies(), pause=0.01).run()
    assert result["squares"] == expected(20)
    assert {found.node for found in records(tmp_path)} == {"a"}


# ---- items and results -----------------------------------------------------------------------------------------------


def test_the_identity_of_an_item_is_its_content() -> None:
    item = WorkItem({"lr": 0.1, "steps": 3}, 4, {"x": "ab"})
    assert item.identity == WorkItem({"steps": 3, "lr": 0.1}, 4, {"x": "ab"}).identity
    others = [WorkItem({"lr": 0.2, "steps": 3}, 4, {"x": "ab"}), WorkItem(item.config, 5, {"x": "ab"})]
    others += [WorkItem(item.config, 4, {"x": "ac"}), WorkItem(item.config, 4)]
    assert len({item.identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1 + 2j])
def test_metrics_are_numbers_and_texts_only(value: Any) -> None:
    with pytest.raises(ConfigError, match="the metric 'x' is a"):
        Outcome({"x": value})


def test_too_many_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match="201 metrics"):
        Outcome({f"m{n}": n for n in range(201)})


def test_results_survive_messages_and_records_bit_for_bit() -> None:
    import numpy as np

    metrics = {"acc": 0.1 + 0.2, "nan": float("nan"), "n": 2**62, "ok": True, "text": "é"}
    outcome = Outcome(metrics, {"seconds": 1.5}, {"x": np.array([[1.5, -0.0]], np.float32)})
    message = Result.of(3, 0.5, outcome).message(step=1)
    back = Result.read(message, "node a").outcome({"x": outcome.tensors["x"]}, "node a")
    assert repr(back.metrics) == repr(metrics)
    result = ItemResult(4, WorkItem({"a": [1]}, 7, {}), back, "", "a", 0.5, 2)
    again = decode(encode(result))
    assert again.outcome is not None
    assert repr(again.outcome.metrics) == repr(metrics)
    assert again.outcome.measured == {"seconds": 1.5}
    assert again.outcome.tensors["x"].tobytes() == outcome.tensors["x"].tobytes()
    assert (again.index, again.item, again.node, again.attempts) == (4, result.item, "a", 2)
