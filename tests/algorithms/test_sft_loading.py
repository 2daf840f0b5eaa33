"""Programs in threads load their halves of a model at the same time, and nobody hears of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from farshore.algorithms.split_fine_tuning import backbone
from farshore.algorithms.split_fine_tuning.cut import build_front, build_trunk
from farshore.algorithms.split_fine_tuning.plan import CutOptions

OPTIONS = CutOptions(2, "ffn_svd", 8, decoder="mlp", sentence_vector=4)


def build_both(folder: Path) -> dict[str, Any]:
    """A front and a trunk, each in a thread of its own."""
    made: dict[str, Any] = {}

    def front() -> None:
        made["front"] = build_front(folder, OPTIONS, classes=2)[0]

    def trunk() -> None:
        made["trunk"] = build_trunk(folder, OPTIONS, classes=2)

    threads = [threading.Thread(target=work, name=f"load {work.__name__}") for work in (front, trunk)]
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

    class Watched:
        @staticmethod
        def from_pretrained(*args: Any, **options: Any) -> Any:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            other.wait(0.3)  # time enough for the other thread to come in, if nothing keeps it out
            try:
                return real(*args, **options)
            finally:
                inside[0] -= 1

    monkeypatch.setattr(backbone, "AutoModel", Watched)
    level = transformers_logging.get_verbosity()
    made = build_both(tiny_data["tiny"])
    assert made.keys() == {"front", "trunk"}
    assert most == [1]
    assert transformers_logging.get_verbosity() == level
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_halves_loaded_at_once_are_those_loaded_one_by_one(tiny_data: dict[str, Path]) -> None:
    alone = {
        "front": build_front(tiny_data["tiny"], OPTIONS, classes=2)[0],
        "trunk": build_trunk(tiny_data["tiny"], OPTIONS, classes=2),
    }
    for _ in range(3):
        for side, module in build_both(tiny_data["tiny"]).items():
            state = module.state_dict()
            assert all(torch.equal(state[n], t) for n, t in alone[side].state_dict().items())
