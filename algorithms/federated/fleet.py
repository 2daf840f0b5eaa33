"""What a round asks of the clients of a run, whoever they are: train from a state, and have their updates added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .methods import Method
from .tree import Part


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server keeps of a client's update.

    Attributes
    ----------
    client : int
    samples, steps : int
    loss : float
        Mean over the client's steps.
    """

    client: int
    samples: int
    steps: int
    loss: float


@dataclass(slots=True)
class Gathered:
    """A round's outcome.

    Attributes
    ----------
    total : dict of arrays or None
        The sum of the contributions; None if nobody's came.
    replies : list of Reply
        In cohort order.
    missing : dict
        Client -> why nothing of it was added.
    seen : dict of arrays
        What clients got of the state that was sent: the same arrays unless the downlink's encoding lost something.
    late : list of int
        Those of the missing that may still answer, too late.
    dropped : int
        Updates of earlier rounds that arrived during this one and were not added to anything.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    seen: Part = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    dropped: int = 0


class Fleet(Protocol):
    """Whoever does the clients' part of a run."""

    @property
    def population(self) -> int:
        """How many clients there are."""

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Have the cohort train from ``down`` and add up what it sends."""

    def keep(self, number: int) -> None:
        """Have every client that remembers something save it as of this round; the server saves its state after that.

        So whoever could save has what the server's newest state goes with.
        """

    def done(self) -> None:
        """Say goodbye to all clients after the last round."""
