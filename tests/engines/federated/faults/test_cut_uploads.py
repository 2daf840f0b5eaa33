"""Uploads that a network cuts, or damages, at chosen bytes of a frame: sent again, and the sums have the same bits."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from farshore.wire.frame import MAGIC, PREFIX_BYTES, FrameType

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]

#: An update's frame is so large at least; no other that a node sends to the server is.
_UPDATE_BYTES = 400
_CHECKSUM = PREFIX_BYTES - 8
#: Byte of an update's frame at which its connection is cut, by round: in the magic, the lengths, the checksum, the
#: header, the payload.
CUTS = (2, 10, _CHECKSUM + 3, PREFIX_BYTES, PREFIX_BYTES + 20, _UPDATE_BYTES - 60)
#: Byte whose bits are turned over in the round after these.
DAMAGED = _UPDATE_BYTES - 50


class Saboteur:
    """A proxy in front of a server without TLS that looks for updates on their way up, and does what is planned.

    Attributes
    ----------
    plan : list of (str, int)
        For each next update: ``cut`` or ``damage``, and at which byte of its frame.
    done : list of (str, int)
    """

    def __init__(self, target: str, plan: list[tuple[str, int]]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.plan, self.done = plan, list[tuple[str, int]]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="saboteur", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for source, sink, up in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=(source, sink, up), name="saboteur", daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            # gRPC writes a frame as small as these in one go; it comes in one piece over loopback.
            while block := bytearray(source.recv(1 << 16)):
                found = self._update(block) if up and self.plan else None
                if found is None:
                    sink.sendall(block)
                    continue
                what, at = self.plan.pop(0)
                self.done.append((what, at))
                if what == "cut":
                    sink.sendall(block[: found + at])
                    break
                block[found + at] ^= 0xFF
                sink.sendall(block)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _update(block: bytearray) -> int | None:
        at = block.find(MAGIC + bytes([FrameType.DATA]))
        return at if at >= 0 and len(block) - at >= _UPDATE_BYTES else None

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def sabotaged(faults: Any, start: Any) -> Iterator[tuple[Any, Saboteur]]:
    """A server without TLS whose node b talks through a saboteur."""
    cloud = start(insecure=True, heartbeat_seconds=2.0)
    plan = [("cut", at) for at in CUTS] + [("damage", DAMAGED)]
    between = Saboteur(cloud.local.address, plan)
    cloud.join("a", "c", insecure=True)
    cloud.join("b", address=between.address, insecure=True)
    yield cloud, between
    between.close()


def test_an_upload_cut_or_damaged_at_any_byte_is_sent_again_and_costs_no_bit(
    faults: Any, sabotaged: tuple[Any, Saboteur]
) -> None:
    cloud, between = sabotaged
    play = faults.play(cloud, {}, rounds=8, least=3)
    state, history = play.outcome()
    # One after the other: what is sent again after a cut meets the next one.
    assert between.done == [("cut", at) for at in CUTS] + [("damage", DAMAGED)]
    assert between.plan == []
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(play))
    assert play.updates() == [(round_index, node) for round_index in range(1, 9) for node in faults.nodes]
    assert play.finish().epoch == 0
