"""Programs in different threads can load their halves of a model at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from farshore.algorithms.split_fine_tuning import backbone
from farshore.algorithms.split_fine_tuning.backbone import load_backbone
from farshore.algorithms.split_fine_tuning.cut import build_front, build_trunk
from farshore.algorithms.split_fine_tuning.plan import CutOptions

OPTIONS = CutOptions(2, "ffn_svd", 8, decoder="mlp", sentence_vector=4)


def at_once(**makers: Callable[[], Any]) -> dict[str, Any]:
    """Run every maker in its own thread; return the results by name."""
    made: dict[str, Any] = {}

    def make(name: str) -> None:
        made[name] = makers[name]()

    threads = [threading.Thread(target=make, name=f"make {name}", args=(name,)) for name in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_two_threads_never_load_at_once(
    tiny_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    inside, most = [0], [0]
    other = threading.Event()
    real = backbone.AutoModel.from_pretrained

    class ObservedAutoModel:
        @staticmethod
        def from_pretrained(*args: Any, **options: Any) -> Any:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            other.wait(0.3)  # long enough for the other thread to enter if no lock prevents it
            try:
                return real(*args, **options)
            finally:
                inside[0] -= 1

    monkeypatch.setattr(backbone, "AutoModel", ObservedAutoModel)
    level = transformers_logging.get_verbosity()
    folder = tiny_data["tiny"]
    made = at_once(a=lambda: load_backbone(folder, blocks=2), b=lambda: load_backbone(folder))
    assert made.keys() == {"a", "b"}
    assert most == [1]
    assert transformers_logging.get_verbosity() == level
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_halves_loaded_concurrently_equal_those_loaded_in_sequence(tiny_data: dict[str, Path]) -> None:
    folder = tiny_data["tiny"]
    makers: dict[str, Callable[[], Any]] = {
        "front": lambda: build_front(folder, OPTIONS, classes=2)[0],
        "trunk": lambda: build_trunk(folder, OPTIONS, classes=2),
    }
    alone = {side: make().state_dict() for side, make in makers.items()}
    for _ in range(3):
        for side, module in at_once(**makers).items():
            state = module.state_dict()
            assert all(torch.equal(state[n], t) for n, t in alone[side].items())
