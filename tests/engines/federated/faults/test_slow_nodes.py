"""A node whose bytes trickle in: it is waited for while they move."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.wire.chunks import CHUNK_BYTES
from farshore.wire.pump import STALL_SECONDS

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

_RATE = 28_000.0  # bytes per second


def test_a_client_whose_upload_takes_longer_than_silence_may_last_is_not_declared_dead(
    start: Any, faults: Any, proxy: Any
) -> None:
    assert CHUNK_BYTES / _RATE > STALL_SECONDS, "a chunk would arrive in time: this test would prove nothing"
    cloud = start(heartbeat_seconds=2.0)
    cloud.join("a", "c")
    cloud.join("b", address=proxy(cloud.local.address, _RATE).address)
    play = faults.play(cloud, {}, rounds=1, least=3, width=30_000)  # an update of 1.2 MB
    state, history = play.outcome()
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(play))
    assert "reconnecting" not in play.log
    assert "retransmission" not in {row["kind"] for row in play.ledger()}
    assert play.finish().epoch == 0
