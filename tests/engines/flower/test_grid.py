"""The grid, with the test acting as the nodes over in-memory channels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from farshore.core.errors import PeerLostError, RunCancelledError, RunFailedError
from farshore.core.message import Message as Frame
from farshore.wire.inbox import receive_any
from farshore.wire.memory import MemoryChannel, pair

pytest.importorskip("flwr")
from farshore.engines.flower import compat as fl
from farshore.engines.flower.arrays import from_frame, to_frame
from farshore.engines.flower.flower_ids import flower_id, node_id
from farshore.engines.flower.grid import FarshoreGrid
from farshore.engines.flower.protocol import Goodbye

NAMES = ("a", "b", "c")


@dataclass
class Session:
    """The part of a server session that a grid uses; records logs, metrics and progress."""

    channels: dict[str, MemoryChannel]
    lines: list[str] = field(default_factory=list)
    logged: threading.Event = field(default_factory=threading.Event)
    reported: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shown: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)

    def receive_any(self, nodes: Any, timeout: float | None = None) -> Any:
        return receive_any({n: self.channels[n] for n in nodes}, timeout)

    def dismiss(self, node: str, reason: str) -> None:
        self.channels[node].close(reason=reason)

    def check_cancelled(self) -> None:
        pass

    def log(self, line: str) -> None:
        self.lines.append(line)
        self.logged.set()

    def metrics(self, step: int, **values: float) -> None:
        self.reported.append((step, values))

    def progress(self, done: int, total: int, **values: Any) -> None:
        self.shown.append((done, total, values))


class Harness:
    """A grid and the nodes' ends of its channels."""

    def __init__(self) -> None:
        fl.set_server_identity(7)
        pairs = {name: pair(name) for name in NAMES}
        self.session = Session({name: mine for name, (mine, _) in pairs.items()})
        self.nodes = {name: theirs for name, (_, theirs) in pairs.items()}
        self.failures: list[Exception] = []
        self.grid = FarshoreGrid(self.session, fl.make_run(7, {}), on_failure=self.failures.append)  # type: ignore[arg-type]

    def message(self, name: str, ttl: float | None = None, group: str = "1") -> fl.Message:
        return fl.Message(fl.RecordDict(), _id(name), "train", ttl=ttl, group_id=group)

    def answer(self, name: str) -> None:
        """Answer the next message of a node with its name."""
        request = from_frame(self.nodes[name].receive(10), "the server")
        content = fl.RecordDict({"config": fl.ConfigRecord({"from": name})})
        self.nodes[name].send(to_frame(fl.set_metadata(fl.Message(content, reply_to=request)), 1))

    def close(self) -> None:
        for channel in self.session.channels.values():
            channel.close()
        self.grid._listener.join(10)
        assert not self.grid._listener.is_alive()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def _start(call: Callable[[], Any]) -> Callable[[], Any]:
    """Run ``call`` in a thread; returns a function that waits for its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return lambda: future.result(10)


def _id(name: str) -> int:
    return node_id(name, NAMES.index(name))


def _from(replies: list[fl.Message]) -> list[Any]:
    return [r.error.code if r.has_error() else r.content["config"]["from"] for r in replies]


def test_node_ids_are_stable_positive_and_sorted(harness: Harness) -> None:
    ids = harness.grid.get_node_ids()
    assert list(ids) == [_id(name) for name in NAMES]  # ascending in the order of the cohort
    assert all(1 < each < 1 << 63 for each in ids)
    assert [node.node_id for node in harness.grid.get_nodes()] == ids
    assert flower_id("a") == 1702698405120146464
    # The order of other names is that of their positions too.
    assert sorted([node_id("zebra", 0), node_id("ant", 1), node_id("", 70_000)]) == [
        node_id("zebra", 0), node_id("ant", 1), node_id("", 70_000),
    ]  # fmt: skip


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("b", "c", "a")])
def test_replies_are_in_the_order_of_the_messages_regardless_of_arrival(
    harness: Harness, order: tuple[str, ...]
) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message(name) for name in NAMES]))
    for name in order:
        harness.answer(name)
    assert _from(result()) == ["a", "b", "c"]


def test_messages_to_a_lost_node_get_an_error_reply_at_once(harness: Harness) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message(name) for name in NAMES], timeout=3600))
    harness.answer("a")
    harness.session.channels["b"].fail(PeerLostError("node b: its program was killed by signal 9"))
    harness.answer("c")
    replies = result()
    assert _from(replies) == ["a", fl.ErrorCode.NODE_UNAVAILABLE, "c"]
    assert "killed by signal 9" in str(replies[1].error.reason)
    assert replies[1].metadata.src_node_id == _id("b")
    assert _id("b") not in harness.grid.get_node_ids()
    # Later messages to it get error replies, too.
    assert _from(harness.grid.send_and_receive([harness.message("b")])) == [fl.ErrorCode.NODE_UNAVAILABLE]
    assert _from(harness.grid.send_and_receive([fl.Message(fl.RecordDict(), 99, "train")])) == [5]


def test_an_expired_message_gets_an_error_reply_and_its_late_reply_is_discarded(harness: Harness) -> None:
    replies = harness.grid.send_and_receive([harness.message("a", ttl=0.2)], timeout=3600)
    assert _from(replies) == [fl.ErrorCode.REPLY_MESSAGE_UNAVAILABLE]
    assert "ttl of 0.2 s" in str(replies[0].error.reason)
    harness.answer("a")
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a")]))
    harness.answer("a")
    assert _from(result()) == ["a"]
    assert any("not pending" in line for line in harness.session.lines)


def test_progress_of_a_round_counts_ok_late_and_failed_nodes(harness: Harness) -> None:
    messages = [harness.message("a"), harness.message("b", ttl=0.3), harness.message("c")]
    result = _start(lambda: harness.grid.send_and_receive(messages, timeout=3600))
    harness.answer("a")
    harness.session.channels["c"].fail(PeerLostError("node c: its program was killed by signal 9"))
    result()
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a", group="2")]))  # a second round
    harness.answer("a")
    result()
    ((done, total, values),) = harness.session.shown
    assert (done, total, values["unit"]) == (1, 1, "round")
    assert [values[name] for name in ("ok", "late", "failed")] == [1, 1, 1]
    assert 0.2 < values["seconds"] < 10


def test_a_timeout_returns_the_replies_so_far_and_discards_later_ones(harness: Harness) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a"), harness.message("b")], timeout=0.5))
    harness.answer("a")
    assert _from(result()) == ["a"]
    harness.answer("b")
    result = _start(lambda: harness.grid.send_and_receive([harness.message("b")]))
    harness.answer("b")
    assert _from(result()) == ["b"]
    assert harness.grid._replies == {}


def test_pushed_messages_are_pulled_once(harness: Harness) -> None:
    first, second = harness.grid.push_messages([harness.message("a"), harness.message("b")])
    assert harness.grid.pull_messages([first, second]) == []
    harness.answer("b")
    with harness.grid._changed:
        harness.grid._changed.wait_for(lambda: second in harness.grid._replies, 10)
    assert _from(harness.grid.pull_messages([first, second, "unknown"])) == ["b"]
    assert harness.grid.pull_messages([second]) == []


def test_a_node_cannot_reply_for_another(harness: Harness) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a")]))
    request = from_frame(harness.nodes["a"].receive(10), "the server")
    forged = fl.Message(fl.RecordDict({"config": fl.ConfigRecord({"from": "forged"})}), reply_to=request)
    harness.nodes["b"].send(to_frame(fl.set_metadata(forged), 1))
    honest = fl.Message(fl.RecordDict({"config": fl.ConfigRecord({"from": "a"})}), reply_to=request)
    assert harness.session.logged.wait(10)
    harness.nodes["a"].send(to_frame(fl.set_metadata(honest), 1))
    assert _from(result()) == ["a"]


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (Frame("train"), "a 'train' frame contains no message"),
        (Frame("train", fields={"message": "text"}), "invalid 'train' message: expected bytes, got str"),
        (Frame("control", fields={"what": "done"}), "expected 'goodbye', got a 'control' message 'done'"),
        (Frame("control", fields={"what": "goodbye", "why": "x"}), "unknown field 'why'"),
        (Goodbye().message(), "'goodbye' before the app has ended"),
    ],
)
def test_a_node_that_sends_an_invalid_message_is_lost(harness: Harness, frame: Frame, complaint: str) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a"), harness.message("b")]))
    harness.nodes["a"].receive(10)
    harness.nodes["a"].send(frame)
    harness.answer("b")
    lost, answered = result()
    assert lost.error.code == fl.ErrorCode.NODE_UNAVAILABLE
    assert "node a: " in str(lost.error.reason)
    assert complaint in str(lost.error.reason)
    assert _from([answered]) == ["b"]
    with pytest.raises(PeerLostError, match="node a: "):
        harness.nodes["a"].receive(10)


def test_many_threads_can_send_concurrently(harness: Harness) -> None:
    stop = threading.Event()

    def serve(name: str) -> None:
        while not stop.is_set():
            try:
                harness.answer(name)
            except (TimeoutError, PeerLostError):
                return

    for name in NAMES:
        threading.Thread(target=serve, args=(name,), daemon=True).start()
    names = [NAMES[i % 3] for i in range(300)]
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda name: harness.grid.send_and_receive([harness.message(name)])[0], names))
    stop.set()
    assert _from(replies) == names
    assert harness.grid.sent == 300


def test_cancellation_wakes_waiting_calls(harness: Harness) -> None:
    result = _start(lambda: harness.grid.send_and_receive([harness.message("a")]))
    harness.nodes["a"].receive(10)
    for channel in harness.session.channels.values():
        channel.fail(RunCancelledError("run 1: enough"))
    with pytest.raises(RunCancelledError, match="enough"):
        result()
    with pytest.raises(RunCancelledError):
        harness.grid.get_node_ids()
    assert isinstance(harness.failures[0], RunCancelledError)


def test_losing_every_node_ends_the_run(harness: Harness) -> None:
    for name in NAMES:
        harness.session.channels[name].fail(PeerLostError(f"node {name} is lost"))
    harness.grid._listener.join(10)
    assert [type(f) for f in harness.failures] == [RunFailedError]
    with pytest.raises(RunFailedError, match="no nodes remain"):
        harness.grid.send_and_receive([harness.message("a")])


def test_round_metrics_have_weighted_means_of_client_metrics(harness: Harness) -> None:
    for group, values in (("1", ((1, 2.0), (3, 6.0))), ("2", ((1, 0.5),))):
        messages = [harness.message(name, group=group) for name, _ in zip(NAMES, values, strict=False)]
        result = _start(lambda sent=messages: harness.grid.send_and_receive(sent))
        for name, (count, loss) in zip(NAMES, values, strict=False):
            request = from_frame(harness.nodes[name].receive(10), "the server")
            record = fl.MetricRecord({"num-examples": count, "loss": loss})
            harness.nodes[name].send(
                to_frame(fl.set_metadata(fl.Message(fl.RecordDict({"m": record}), reply_to=request)), 1)
            )
        result()
    assert harness.session.reported == [(1, {"replies": 2, "failures": 0, "train_loss": 5.0})]
