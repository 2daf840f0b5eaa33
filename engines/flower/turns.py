"""Lets simulated clients of one process compute in turns, except while they sleep."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

#: Held by the client that computes: they share the process' global random generators.
_COMPUTING = threading.Lock()
_patching = threading.Lock()
_turns = 0  # in progress: at most one computes, the others sleep
_local = threading.local()
_sleep = time.sleep


@contextmanager
def turn() -> Iterator[None]:
    """Wait for this thread's turn to compute, and keep it except within ``time.sleep``.

    An app that sleeps, to act as a slow or lost client, would otherwise stop all others.
    """
    with _COMPUTING, _sleep_replaced():
        _local.computing = True
        try:
            yield
        finally:
            _local.computing = False


@contextmanager
def _sleep_replaced() -> Iterator[None]:
    """Replace ``time.sleep`` as long as there is a turn; threads without one sleep as ever."""
    global _turns
    with _patching:
        _turns += 1
        time.sleep = _sleep_without_turn  # type: ignore[assignment]
    try:
        yield
    finally:
        with _patching:
            _turns -= 1
            if not _turns:
                time.sleep = _sleep


def _sleep_without_turn(seconds: float) -> None:
    if not getattr(_local, "computing", False):
        _sleep(seconds)
        return
    states = _generator_states()
    _COMPUTING.release()
    try:
        _sleep(seconds)
    finally:
        _COMPUTING.acquire()
        _restore(states)


def _generator_states() -> tuple[Any, ...]:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    if states[2] is not None:
        sys.modules["torch"].set_rng_state(states[2])
