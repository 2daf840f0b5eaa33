"""The outbox of a node: order, limits, and exit events that survive a broken stream."""

import asyncio

from farshore.client.outbox import Outbox
from farshore.proto import control_pb2 as pb


def _exit(run: str) -> pb.NodeEvent:
    return pb.NodeEvent(exited=pb.ProgramExited(run_id=run))


def test_log_lines_are_batched_and_come_before_the_exit_of_their_program() -> None:
    async def check() -> None:
        outbox = Outbox()
        for number in range(3):
            outbox.line("r", f"line {number}")
        outbox.put(_exit("r"))
        first, second = await outbox.take(), await outbox.take()
        assert list(first.log.lines) == ["line 0", "line 1", "line 2"]
        assert second.exited.run_id == "r"

    asyncio.run(check())


def test_lines_of_two_runs_are_not_mixed() -> None:
    async def check() -> None:
        outbox = Outbox()
        outbox.line("a", "1")
        outbox.line("b", "2")
        events = [await outbox.take(), await outbox.take()]
        assert [(e.log.run_id, list(e.log.lines)) for e in events] == [("a", ["1"]), ("b", ["2"])]

    asyncio.run(check())


def test_an_exit_sent_on_a_broken_stream_is_sent_again_before_newer_ones() -> None:
    async def check() -> None:
        outbox = Outbox()
        outbox.put(_exit("first"))
        await outbox.take()
        outbox.put(_exit("second"))
        outbox.reopen()
        assert [(await outbox.take()).exited.run_id for _ in range(2)] == ["first", "second"]

    asyncio.run(check())


def test_lines_beyond_the_limit_are_dropped_and_counted() -> None:
    async def check() -> None:
        outbox = Outbox()
        for number in range(5200):
            outbox.line("r", str(number))
        lines: list[str] = []
        while len(lines) < 5001:
            lines += (await outbox.take()).log.lines
        assert "200 lines were lost" in lines[0]
        assert (lines[1], lines[-1]) == ("200", "5199")

    asyncio.run(check())
