"""Byte counts of a run equal the sum of its transfers, for any number of recording threads."""

from __future__ import annotations

import threading

from farshore.core.transfer import Transfer
from farshore.runs.traffic import CHANNEL_KINDS, Traffic


def transfer(kind: str, direction: str, dense: int) -> Transfer:
    return Transfer("a", direction, kind, "raw", 1, 0, 0, dense, 2 * dense, 3 * dense, 0, 0.0)  # type: ignore[arg-type]


def test_bytes_count_all_transfers_except_channel_messages() -> None:
    passed: list[Transfer] = []
    traffic = Traffic(passed.append)
    assert set(traffic.bytes().values()) == {0}

    def record() -> None:
        for number in range(3000):
            traffic.record(transfer("update", "up", number % 7))
            traffic.record(transfer("model", "down", 1))
            traffic.record(transfer(CHANNEL_KINDS[number % len(CHANNEL_KINDS)], "up", 1000))

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        traffic.bytes()
    for thread in threads:
        thread.join()
    up = 4 * sum(number % 7 for number in range(3000))
    assert traffic.bytes() == {
        **{"dense_up": up, "payload_up": 2 * up, "frame_up": 3 * up},
        **{"dense_peer": 0, "payload_peer": 0, "frame_peer": 0},
        **{"dense_down": 12000, "payload_down": 24000, "frame_down": 36000},
    }
    assert len(passed) == 4 * 9000


def test_progress_counts_all_frames_and_kinds_are_separate() -> None:
    traffic = Traffic(lambda _: None)
    traffic.record(transfer("update", "up", 5))
    traffic.record(transfer("ack", "up", 1))
    traffic.record(transfer("all_reduce", "peer", 7))
    assert traffic.progress() == {"payload_up": 12, "payload_down": 0, "frame_up": 18, "frame_down": 0}
    assert traffic.kinds() == {"up": {"update": 15, "ack": 3}, "down": {}, "peer": {"all_reduce": 21}}
