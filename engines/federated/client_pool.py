"""What a round asks of the clients of a run, whoever they are: train from a state, and have their updates added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ...core.seeds import Seed
from .methods import FederatedMethod, Update
from .tree import Part


def cohort(seed: Seed, round_index: int, population: int, size: int) -> list[int]:
    """The clients of a round, ascending: drawn without replacement by run seed and round alone, whatever the method."""
    drawn = seed.child("cohort", round_index).numpy().choice(population, size=size, replace=False, shuffle=False)
    return sorted(int(client) for client in drawn)


class Reply(NamedTuple):
    """What the server keeps of a client's update.

    Attributes
    ----------
    client : int
    samples, steps : int
    loss : float
        Mean over the client's steps.
    figures : dict of float
        What else it told of its training.
    """

    client: int
    samples: int
    steps: int
    loss: float
    figures: Mapping[str, float] = MappingProxyType({})

    @classmethod
    def of(cls, client: int, update: Update) -> Reply:
        """What is kept of an update."""
        return cls(client, update.samples, update.steps, update.loss, update.figures)


@dataclass(slots=True)
class RoundResult:
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
    figures : dict
        What else there is to tell of the round.
    seconds : dict
        Where this machine's time went: ``train`` until the first reply, ``wait`` from then to the last one,
        ``aggregate`` for checking and adding up. Clients played by this machine are not waited for, and are added up
        as they train.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    seen: Part = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    dropped: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AsyncResult:
    """What came of one client's training, where nobody waits for a whole cohort.

    Attributes
    ----------
    client, round_index : int
        ``round_index`` is what the model was sent as.
    proposal : dict of arrays or None
        The state that the server would have, had it waited for this reply alone; None if there is none.
    seen : dict of arrays
        The state that the client began from.
    reply : Reply or None
    missing : str
        Why there is no proposal.
    gone : bool
        It will never answer again.
    """

    client: int
    round_index: int
    proposal: Part | None
    seen: Part
    reply: Reply | None = None
    missing: str = ""
    gone: bool = False


class InFlight(NamedTuple):
    """What a simulated client has under way, which is all settled when it is sent something.

    Attributes
    ----------
    client, round_index : int
        ``round_index`` is what the model was sent as.
    end, joule : float
        When something comes of it in simulated seconds, and what it uses up until then.
    lost : bool
        It crashes on the way.
    """

    client: int
    round_index: int
    end: float
    lost: bool
    joule: float


@dataclass(frozen=True, slots=True)
class UnderWay:
    """All that is under way, and the states that it began from, by their number."""

    flights: list[InFlight]
    seen: dict[int, Part]


class Stream(Protocol):
    """Clients that train one by one; each trains one state at a time."""

    def send(self, client: int, round_index: int, down: Part) -> None:
        """Have a client train from ``down`` in round ``round_index``."""

    def ready(self, client: int) -> bool:
        """Whether a client would begin at once."""

    def next(self) -> AsyncResult:
        """Wait for the next outcome of what was sent."""

    def figures(self) -> dict[str, float]:
        """What there is to tell, besides the replies, since the last call."""

    def under_way(self) -> UnderWay | None:
        """What a run that goes on can take up again; None where only the clients themselves know."""

    def take_up(self, under_way: UnderWay) -> None:
        """Have it under way again, before anything else is sent."""


class ClientPool(Protocol):
    """Whoever does the clients' part of a run."""

    @property
    def population(self) -> int:
        """How many clients there are."""

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Whom round ``round_index`` asks so that ``size`` may answer, ascending; ``seed`` is the run's."""

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Go on after the rounds of ``history``."""

    def round(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> RoundResult:
        """Have the cohort train from ``down`` and add up what it sends."""

    def stream(self, method: FederatedMethod) -> Stream:
        """The same clients, one by one."""

    def keep(self, round_index: int) -> None:
        """Have every client that remembers something save it as of this round; the server saves its state after that.

        So whoever could save has what the server's newest state goes with.
        """

    def done(self) -> None:
        """Say goodbye to all clients after the last round."""
