"""What a synchronous run sends besides states and updates: described once, for estimates and for simulated ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from ...core.message import Message
from ...core.transfer import Direction
from ..assets.offer import exchange
from .assets import Assets
from .messages import Done, Keep, Kept

#: Messages between the server and one client, in order.
Exchange: TypeAlias = Iterator[tuple[Direction, Message]]


def asset_exchange(assets: Assets, round_index: int = 0, *, lacking: bool) -> Exchange:
    """Yield the messages before a client's first round; ``lacking``: it is sent the content."""
    return exchange(assets.planned, round_index, lacking=lacking)


def checkpoint_exchange(round_index: int = 0) -> Exchange:
    """Yield the messages by which a client saves its state before the server's checkpoint."""
    yield "down", Keep().message(round=round_index)
    yield "up", Kept().message(round=round_index)


def end_exchange() -> Exchange:
    """Yield the message that ends the run for a client."""
    yield "down", Done().message()
