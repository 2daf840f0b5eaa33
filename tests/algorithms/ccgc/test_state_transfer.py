"""A rank without a checkpoint gets the state of one that has it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.ccgc import state_transfer
from farshore.algorithms.ccgc.state_transfer import broadcast_state


class Broadcasts:
    """``torch.distributed.broadcast`` among threads named by their rank."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._value: Any = None

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        if threading.current_thread().name == str(source):
            self._value = tensor.clone()
        self._barrier.wait()
        tensor.copy_(self._value)
        self._barrier.wait()


@pytest.mark.parametrize("source", [0, 2])
def test_arrays_and_history_arrive_on_all_ranks(source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_transfer, "dist", Broadcasts(3))
    arrays = {
        "labels": np.arange(7),
        "weights": np.random.default_rng(0).random((3, 4), np.float32),
        "step": np.array(3.0, np.float32),
    }
    history = '[{"epoch": 0, "acc": 71.5, "naïve": true}]'
    found: dict[int, Any] = {}

    def rank(own: int) -> None:
        found[own] = broadcast_state((arrays, history) if own == source else None, source, own)

    threads = [threading.Thread(target=rank, args=(own,), name=str(own)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == {0, 1, 2}
    for received, text in found.values():
        assert text == history
        assert received.keys() == arrays.keys()
        assert all(received[name].dtype == array.dtype for name, array in arrays.items())
        assert all(np.array_equal(received[name], array) for name, array in arrays.items())
        assert received["step"].shape == ()
