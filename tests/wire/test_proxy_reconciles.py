"""Compares the ledger's frame bytes with the bytes counted by a TCP proxy between node and server."""

from __future__ import annotations

from typing import Any

import pytest

# HTTP/2 adds 9 bytes per 16 KiB and 5 per message; a connection adds preface, settings, headers and window updates.
RATE, CONSTANT = 0.01, 16_000


@pytest.mark.parametrize("kind", ["direct", "relay"])
def test_the_frame_bytes_of_the_ledger_match_those_on_the_socket(network: Any, kind: str) -> None:
    ends = network.connect(kind, proxied=True)
    for i in range(12):
        size = 300_000 * (i % 4) + 5
        ends.node.send(network.message(i, size, "activation"))
        network.check(ends.server.receive(20), i, size)
        ends.server.send(network.message(i, size // 3, "gradient"))
        network.check(ends.node.receive(20), i, size // 3)
    ends.node.close(20, "done")
    ends.dialer.join(10)
    for direction, counted in (("up", ends.proxy.up), ("down", ends.proxy.down)):
        frames = sum(r.frame_bytes for r in ends.rows if r.direction == direction)
        payload = sum(r.payload_bytes for r in ends.data_rows if r.direction == direction)
        assert payload == sum(
            300_000 * (i % 4) + 5 if direction == "up" else (300_000 * (i % 4) + 5) // 3 for i in range(12)
        )
        assert payload < frames <= counted <= frames * (1 + RATE) + CONSTANT, (direction, frames, counted)
