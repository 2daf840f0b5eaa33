"""The node registry: connected and lost nodes, one control stream per node; and the rate limit."""

from farshore.proto import control_pb2 as pb
from farshore.server.rate_limit import RateLimit
from farshore.server.registry import Registry


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _registry() -> tuple[Registry, _Clock, list[str]]:
    clock, changes = _Clock(), list[str]()
    return Registry(2.0, lambda: changes.append("change"), clock), clock, changes


def test_a_node_is_lost_after_three_missed_heartbeats_and_not_before() -> None:
    registry, clock, changes = _registry()
    registry.connect("a", pb.Hello())
    clock.now += 5.9
    assert registry.expire() == []
    clock.now += 0.2
    assert [n.name for n in registry.expire()] == ["a"]
    node = registry.get("a")
    assert node is not None
    assert (node.state, node.reason) == ("lost", "missed 3 heartbeats")
    assert len(changes) == 2


def test_a_heartbeat_resets_the_timeout() -> None:
    registry, clock, _ = _registry()
    node, _ = registry.connect("a", pb.Hello())
    clock.now += 5
    registry.touch(node)
    clock.now += 5
    assert registry.expire() == []


def test_a_second_stream_replaces_the_first_which_is_ended() -> None:
    registry, _, _ = _registry()
    node, first = registry.connect("a", pb.Hello())
    _, second = registry.connect("a", pb.Hello())
    assert first.get_nowait().WhichOneof("command") is None
    registry.disconnect(node, first)  # must not disconnect the second stream
    assert registry.command(node, pb.NodeCommand(stop=pb.StopProgram(run_id="r")))
    assert second.get_nowait().stop.run_id == "r"


def test_a_node_with_a_broken_stream_is_not_lost_at_once() -> None:
    registry, _, _ = _registry()
    node, commands = registry.connect("a", pb.Hello())
    registry.disconnect(node, commands)
    assert node.state == "connected"
    assert not registry.command(node, pb.NodeCommand())


def test_the_command_queue_of_a_node_that_does_not_read_is_bounded() -> None:
    registry, _, _ = _registry()
    node, commands = registry.connect("a", pb.Hello())
    sent = sum(registry.command(node, pb.NodeCommand()) for _ in range(10_000))
    assert sent == commands.qsize() < 1000


def test_failures_block_only_their_peer_and_only_for_a_while() -> None:
    clock = _Clock()
    limit = RateLimit(max_failures=3, seconds=60, clock=clock)
    for _ in range(3):
        assert limit.blocked("x") == 0
        limit.failed("x")
    assert limit.blocked("x") == 60
    assert limit.blocked("y") == 0
    clock.now += 61
    assert limit.blocked("x") == 0
