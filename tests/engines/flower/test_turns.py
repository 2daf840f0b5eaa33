"""Clients of one process compute in turns, sleep beside each other, and leave ``time.sleep`` as they found it."""

from __future__ import annotations

import threading
import time

import pytest

from farshore.engines.flower.turns import turn


def test_sleepers_let_others_compute_and_sleep_is_restored_after_the_last_turn() -> None:
    original = time.sleep
    computing: list[str] = []
    order: list[str] = []
    asleep, woken = threading.Event(), threading.Event()

    def client(name: str) -> None:
        with turn():
            computing.append(name)
            if name == "slow":
                asleep.set()
                time.sleep(0.2)  # releases the turn
                assert time.sleep is not original
                woken.set()
            computing.remove(name)
            order.append(name)

    slow = threading.Thread(target=client, args=("slow",))
    slow.start()
    assert asleep.wait(10)
    for index in range(3):
        client(f"fast {index}")
    slow.join(10)
    assert woken.is_set()
    assert order[-1] == "slow"
    assert time.sleep is original


def test_sleep_is_restored_after_an_error() -> None:
    original = time.sleep
    with pytest.raises(ValueError, match="app"), turn():
        raise ValueError("app")
    assert time.sleep is original
