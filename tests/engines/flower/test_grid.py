"""The grid, with the nodes' ends of its channels played by hand: nothing here waits for a clock but the ttl's test."""

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
from farshore.engines.flower.grid import FarshoreGrid
from farshore.engines.flower.numbers import number_of

NAMES = ("a", "b", "c")


@dataclass
class Session:
    """As much of a server's session as a grid uses."""

    channels: dict[str, MemoryChannel]
    lines: list[str] = field(default_factory=list)
    spoke: threading.Event = field(default_factory=threading.Event)
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shown: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)

    def receive_any(self, nodes: Any, timeout: float | None = None) -> Any:
        return receive_any({n: self.channels[n] for n in nodes}, timeout)

    def check_cancelled(self) -> None:
        pass

    def log(self, line: str) -> None:
        self.lines.append(line)
        self.spoke.set()

    def metrics(self, step: int, **values: float) -> None:
        self.told.append((step, values))

    def progress(self, done: int, total: int, **values: Any) -> None:
        self.shown.append((done, total, values))


class House:
    """A grid and the nodes' ends of its channels."""

    def __init__(self) -> None:
        fl.take_identity(7)
        pairs = {name: pair(name) for name in NAMES}
        self.session = Session({name: mine for name, (mine, _) in pairs.items()})
        self.nodes = {name: theirs for name, (_, theirs) in pairs.items()}
        self.failures: list[Exception] = []
        self.grid = FarshoreGrid(self.session, fl.make_run(7, {}), on_failure=self.failures.append)  # type: ignore[arg-type]

    def message(self, name: str, ttl: float | None = None, group: str = "1") -> fl.Message:
        return fl.Message(fl.RecordDict(), number_of(name), "train", ttl=ttl, group_id=group)

    def answer(self, name: str) -> None:
        """Let a node answer its next message with its name."""
        asked = from_frame(self.nodes[name].receive(10))
        content = fl.RecordDict({"config": fl.ConfigRecord({"from": name})})
        self.nodes[name].send(to_frame(fl.address(fl.Message(content, reply_to=asked)), 1))

    def close(self) -> None:
        for channel in self.session.channels.values():
            channel.close()
        self.grid._listener.join(10)
        assert not self.grid._listener.is_alive()


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def _later(what: Callable[[], Any]) -> Callable[[], Any]:
    """Start ``what`` in a thread; the result waits for its end."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(what)
    pool.shutdown(wait=False)
    return lambda: future.result(10)


def _from(replies: list[fl.Message]) -> list[Any]:
    return [r.error.code if r.has_error() else r.content["config"]["from"] for r in replies]


def test_numbers_of_nodes_are_stable_positive_and_sorted(house: House) -> None:
    ids = house.grid.get_node_ids()
    assert list(ids) == sorted(number_of(name) for name in NAMES)
    assert all(1 < number < 1 << 63 for number in ids)
    assert [node.node_id for node in house.grid.get_nodes()] == ids
    assert number_of("a") == 1702698405120146464


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("b", "c", "a")])
def test_replies_come_in_the_order_of_the_messages_whoever_was_first(house: House, order: tuple[str, ...]) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message(name) for name in NAMES]))
    for name in order:
        house.answer(name)
    assert _from(result()) == ["a", "b", "c"]


def test_a_node_lost_in_mid_round_answers_with_an_error_at_once(house: House) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message(name) for name in NAMES], timeout=3600))
    house.answer("a")
    house.session.channels["b"].fail(PeerLostError("node b: its program was killed by signal 9"))
    house.answer("c")
    replies = result()
    assert _from(replies) == ["a", fl.ErrorCode.NODE_UNAVAILABLE, "c"]
    assert "killed by signal 9" in str(replies[1].error.reason)
    assert replies[1].metadata.src_node_id == number_of("b")
    assert number_of("b") not in house.grid.get_node_ids()
    # What is sent to it from now on is answered without anybody's help.
    assert _from(house.grid.send_and_receive([house.message("b")])) == [fl.ErrorCode.NODE_UNAVAILABLE]
    assert _from(house.grid.send_and_receive([fl.Message(fl.RecordDict(), 99, "train")])) == [5]


def test_a_message_that_outlives_its_ttl_is_answered_with_an_error_and_a_late_reply_is_left_out(house: House) -> None:
    replies = house.grid.send_and_receive([house.message("a", ttl=0.2)], timeout=3600)
    assert _from(replies) == [fl.ErrorCode.REPLY_MESSAGE_UNAVAILABLE]
    assert "ttl of 0.2 s" in str(replies[0].error.reason)
    house.answer("a")
    result = _later(lambda: house.grid.send_and_receive([house.message("a")]))
    house.answer("a")
    assert _from(result()) == ["a"]
    assert any("not waited for" in line for line in house.session.lines)


def test_who_answered_was_late_or_failed_is_told_with_the_round(house: House) -> None:
    messages = [house.message("a"), house.message("b", ttl=0.3), house.message("c")]
    result = _later(lambda: house.grid.send_and_receive(messages, timeout=3600))
    house.answer("a")
    house.session.channels["c"].fail(PeerLostError("node c: its program was killed by signal 9"))
    result()
    result = _later(lambda: house.grid.send_and_receive([house.message("a", group="2")]))  # a second round
    house.answer("a")
    result()
    ((done, total, told),) = house.session.shown
    assert (done, total, told["unit"]) == (1, 1, "round")
    assert [told[name] for name in ("ok", "late", "failed")] == [1, 1, 1]
    assert 0.2 < told["seconds"] < 10


def test_a_timeout_returns_what_there_is_and_forgets_the_rest(house: House) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message("a"), house.message("b")], timeout=0.5))
    house.answer("a")
    assert _from(result()) == ["a"]
    house.answer("b")
    result = _later(lambda: house.grid.send_and_receive([house.message("b")]))
    house.answer("b")
    assert _from(result()) == ["b"]
    assert house.grid._replies == {}


def test_pushed_messages_are_pulled_once(house: House) -> None:
    first, second = house.grid.push_messages([house.message("a"), house.message("b")])
    assert house.grid.pull_messages([first, second]) == []
    house.answer("b")
    with house.grid._changed:
        house.grid._changed.wait_for(lambda: second in house.grid._replies, 10)
    assert _from(house.grid.pull_messages([first, second, "unknown"])) == ["b"]
    assert house.grid.pull_messages([second]) == []


def test_a_node_cannot_answer_for_another(house: House) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message("a")]))
    asked = from_frame(house.nodes["a"].receive(10))
    forged = fl.Message(fl.RecordDict({"config": fl.ConfigRecord({"from": "forged"})}), reply_to=asked)
    house.nodes["b"].send(to_frame(fl.address(forged), 1))
    honest = fl.Message(fl.RecordDict({"config": fl.ConfigRecord({"from": "a"})}), reply_to=asked)
    assert house.session.spoke.wait(10)
    house.nodes["a"].send(to_frame(fl.address(honest), 1))
    assert _from(result()) == ["a"]


def test_a_node_that_sends_what_is_no_message_is_left_out_by_name(house: House) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message("a")]))
    house.nodes["a"].receive(10)
    house.nodes["a"].send(Frame("train"))
    (reply,) = result()
    assert reply.error.code == fl.ErrorCode.NODE_UNAVAILABLE
    assert "node a: a 'train' frame carries no message" in str(reply.error.reason)


def test_many_threads_send_at_once(house: House) -> None:
    stop = threading.Event()

    def serve(name: str) -> None:
        while not stop.is_set():
            try:
                house.answer(name)
            except (TimeoutError, PeerLostError):
                return

    for name in NAMES:
        threading.Thread(target=serve, args=(name,), daemon=True).start()
    names = [NAMES[i % 3] for i in range(300)]
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda name: house.grid.send_and_receive([house.message(name)])[0], names))
    stop.set()
    assert _from(replies) == names
    assert house.grid.sent == 300


def test_a_cancelled_run_wakes_whoever_waits(house: House) -> None:
    result = _later(lambda: house.grid.send_and_receive([house.message("a")]))
    house.nodes["a"].receive(10)
    for channel in house.session.channels.values():
        channel.fail(RunCancelledError("run 1: enough"))
    with pytest.raises(RunCancelledError, match="enough"):
        result()
    with pytest.raises(RunCancelledError):
        house.grid.get_node_ids()
    assert isinstance(house.failures[0], RunCancelledError)


def test_losing_every_node_ends_the_run(house: House) -> None:
    for name in NAMES:
        house.session.channels[name].fail(PeerLostError(f"node {name} is lost"))
    house.grid._listener.join(10)
    assert [type(f) for f in house.failures] == [RunFailedError]
    with pytest.raises(RunFailedError, match="no node is left"):
        house.grid.send_and_receive([house.message("a")])


def test_rounds_are_told_with_the_means_of_what_clients_report(house: House) -> None:
    for group, values in (("1", ((1, 2.0), (3, 6.0))), ("2", ((1, 0.5),))):
        messages = [house.message(name, group=group) for name, _ in zip(NAMES, values, strict=False)]
        result = _later(lambda sent=messages: house.grid.send_and_receive(sent))
        for name, (count, loss) in zip(NAMES, values, strict=False):
            asked = from_frame(house.nodes[name].receive(10))
            record = fl.MetricRecord({"num-examples": count, "loss": loss})
            house.nodes[name].send(to_frame(fl.address(fl.Message(fl.RecordDict({"m": record}), reply_to=asked)), 1))
        result()
    assert house.session.told == [(1, {"replies": 2, "failures": 0, "train_loss": 5.0})]
