"""Uploads cut or corrupted at chosen bytes of a frame are retransmitted, and the sums are bit-identical."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from farshore.wire.frame import MAGIC, PREFIX_BYTES, FrameType

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]

#: Minimum size of an update's frame; all other frames from nodes to the server are smaller.
_UPDATE_BYTES = 400
_CHECKSUM = PREFIX_BYTES - 8
#: Byte of an update's frame at which its connection is cut, by round: in magic, lengths, checksum, header, payload.
CUTS = (2, 10, _CHECKSUM + 3, PREFIX_BYTES, PREFIX_BYTES + 20, _UPDATE_BYTES - 60)
#: Byte that is inverted in the round after these.
DAMAGED = _UPDATE_BYTES - 50


class FaultyProxy:
    """A proxy in front of a server without TLS that cuts or damages updates from nodes as planned.

    Attributes
    ----------
    plan : list of (str, int)
        For each next update: ``cut`` or ``damage``, and the byte of its frame.
    done : list of (str, int)
        Faults so far.
    """

    def __init__(self, target: str, plan: list[tuple[str, int]]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.plan, self.done = plan, list[tuple[str, int]]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="faulty-proxy", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for source, sink, up in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._forward, args=(source, sink, up), name="faulty-proxy", daemon=True
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            # gRPC writes such a small frame at once, and it arrives in one piece over loopback.
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
def proxied(faults: Any, start: Any) -> Iterator[tuple[Any, FaultyProxy]]:
    """A server without TLS whose node b connects through a faulty proxy."""
    cloud = start(insecure=True, heartbeat_seconds=2.0)
    plan = [("cut", at) for at in CUTS] + [("damage", DAMAGED)]
    proxy = FaultyProxy(cloud.local.address, plan)
    cloud.join("a", "c", insecure=True)
    cloud.join("b", address=proxy.address, insecure=True)
    yield cloud, proxy
    proxy.close()


def test_uploads_cut_or_damaged_at_any_byte_are_retransmitted_without_changing_the_result(
    faults: Any, proxied: tuple[Any, FaultyProxy]
) -> None:
    cloud, proxy = proxied
    run = faults.submit(cloud, {}, rounds=8, least=3)
    state, history = run.outcome()
    # One after the other: the retransmission after a cut meets the next fault.
    assert proxy.done == [("cut", at) for at in CUTS] + [("damage", DAMAGED)]
    assert proxy.plan == []
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(run))
    assert run.updates() == [(round_index, node) for round_index in range(1, 9) for node in faults.nodes]
    assert run.finish().epoch == 0
