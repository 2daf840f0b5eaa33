"""What every client must hold before its first round, offered to it once and sent only if it lacks it.

The server offers what there is in a few words; a client answers that it has it (or made it by itself), or that it wants
it. So a client costs the same however many there are, and one that is never drawn costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ...core.message import Message, Scalar
from ...core.transfer import Direction
from .messages import UpdateError


class Assets(Protocol):
    """What there is to hold; both programs of a run make theirs."""

    @property
    def ships(self) -> bool:
        """Whether a client that comes new wants it sent."""

    def words(self) -> dict[str, Scalar]:
        """The server's offer: by what it is told apart and made."""

    def goods(self, round_index: int) -> Message:
        """The thing itself, for a client that wants it in round ``round_index``."""

    def planned(self) -> Sequence[tuple[Direction, Message]]:
        """All that is said to a client that comes new, and by it, of the sizes that it will have; makes nothing."""

    def has(self, words: dict[str, Scalar]) -> bool:
        """On a client: whether what the server offers is here now."""

    def take(self, goods: Message) -> None:
        """On a client: hold what was sent.

        Raises
        ------
        DataError
            It is not what was offered.
        """

    def keep(self) -> Path:
        """On the server's machine: write it to a file, for processes that play clients."""

    def hold(self, path: Path) -> None:
        """In such a process: hold what the file has, in memory that all of them share."""


def offer(briefing: Assets, round_index: int) -> Message:
    """The server's question to a client that comes new in round ``round_index``."""
    return Message("control", round=round_index, fields={"what": "offer", **briefing.words()})


def answer(round_index: int, *, has: bool) -> Message:
    """A client's answer."""
    return Message("control", round=round_index, fields={"what": "have" if has else "want"})


def wants(message: Message) -> bool:
    """Whether a client wants to be sent what was offered.

    Raises
    ------
    UpdateError
        It is no answer.
    """
    what = message.fields.get("what")
    if message.kind != "control" or what not in ("have", "want"):
        raise UpdateError(f"it answered an offer with a '{message.kind}'")
    return what == "want"
