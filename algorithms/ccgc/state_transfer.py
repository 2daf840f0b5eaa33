"""Sends a training's state from a rank that has a checkpoint to those that lack it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from safetensors.numpy import load, save

from ...core.message import Array

_HISTORY = "history"


def broadcast_state(state: tuple[dict[str, Array], str] | None, source: int, rank: int) -> tuple[dict[str, Array], str]:
    """Return the arrays and the history of rank ``source`` on all ranks; a collective.

    As one safetensors file, since ranks without it do not know the shapes.
    """
    content = torch.zeros(0, dtype=torch.uint8)
    if rank == source:
        assert state is not None, "the source holds no checkpoint"
        text = torch.frombuffer(bytearray(state[1].encode() or b" "), dtype=torch.uint8).numpy()
        content = torch.frombuffer(bytearray(save({**state[0], _HISTORY: text})), dtype=torch.uint8)
    size = torch.tensor([len(content)])
    dist.broadcast(size, source)
    if rank != source:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, source)
    arrays = load(content.numpy().tobytes())
    return arrays, arrays.pop(_HISTORY).tobytes().decode()
