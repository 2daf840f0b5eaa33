"""Batches of any structure move to the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from farshore.engines.data_parallel.nested import to_device


@dataclass
class Boxes:
    corners: Tensor
    label: str


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_tensors_in_any_nesting_move_and_the_rest_stays() -> None:
    x = torch.zeros(2)
    batch = {"images": [x, x], "boxes": (Boxes(x, "car"), Pair(x, x)), "name": "a", "count": 3, "none": None}
    moved = to_device(batch, torch.device("meta"))
    assert [t.device.type for t in moved["images"]] == ["meta", "meta"]
    boxes, pair = moved["boxes"]
    assert isinstance(boxes, Boxes)
    assert isinstance(pair, Pair)
    assert {boxes.corners.device.type, pair.left.device.type, pair.right.device.type} == {"meta"}
    assert (boxes.label, moved["name"], moved["count"], moved["none"]) == ("car", "a", 3, None)
    assert x.device.type == "cpu"


def test_tensors_that_are_there_already_are_not_copied() -> None:
    x = torch.zeros(2)
    assert to_device({"x": x}, torch.device("cpu"))["x"] is x
