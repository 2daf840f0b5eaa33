"""A node with a very slow upload is not declared lost while bytes arrive."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.wire.chunks import CHUNK_BYTES
from farshore.wire.pump import STALL_SECONDS

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

_RATE = 28_000.0  # bytes per second


def test_an_upload_that_takes_longer_than_the_stall_limit_is_not_declared_lost(
    start: Any, faults: Any, proxy: Any
) -> None:
    assert CHUNK_BYTES / _RATE > STALL_SECONDS, "a chunk arrives within the stall limit, so this test proves nothing"
    cloud = start(heartbeat_seconds=2.0)
    cloud.join("a", "c")
    cloud.join("b", address=proxy(cloud.local.address, _RATE).address)
    run = faults.submit(cloud, {}, rounds=1, least=3, width=30_000)  # an update of 1.2 MB
    state, history = run.outcome()
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(run))
    assert "reconnecting" not in run.log
    assert "retransmission" not in {row["kind"] for row in run.ledger()}
    assert run.finish().epoch == 0
