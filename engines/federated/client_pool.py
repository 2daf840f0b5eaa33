"""The interface of a run's clients, real or simulated: train from a state and sum the updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ...core.seeds import Seed
from .methods import FederatedMethod, Update
from .tree import NamedArrays


def cohort(seed: Seed, round_index: int, population: int, size: int) -> list[int]:
    """Draw the clients of a round without replacement, ascending; depends only on the run's seed and the round."""
    drawn = seed.child("cohort", round_index).numpy().choice(population, size=size, replace=False, shuffle=False)
    return sorted(int(client) for client in drawn)


class Reply(NamedTuple):
    """The server's record of a client's update, without its tensors.

    Attributes
    ----------
    client : int
    samples, steps : int
    loss : float
        Mean over the client's steps.
    metrics : dict of float
        Further metrics that the client reported.
    """

    client: int
    samples: int
    steps: int
    loss: float
    metrics: Mapping[str, float] = MappingProxyType({})

    @classmethod
    def from_update(cls, client: int, update: Update) -> Reply:
        """Create the record of an update."""
        return cls(client, update.samples, update.steps, update.loss, update.metrics)


@dataclass(slots=True)
class RoundResult:
    """The outcome of a round.

    Attributes
    ----------
    total : dict of arrays or None
        The sum of the contributions; None if there are none.
    replies : list of Reply
        In cohort order.
    missing : dict
        Client -> why its update is not in the sum.
    received : dict of arrays
        The state as clients received it: the same arrays as were sent unless the downlink encoding is lossy.
    late : list of int
        Missing clients whose update may still arrive, after the round.
    dropped : int
        Updates of earlier rounds that arrived during this one and were discarded.
    metrics : dict
        Further metrics of the round.
    seconds : dict
        Time spent by this machine: ``train`` until the first reply, ``wait`` from then to the last one, ``aggregate``
        for validating and summing. Simulated clients cause no ``wait``: their updates are summed as they train.
    """

    total: NamedArrays | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    received: NamedArrays = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    dropped: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AsyncResult:
    """The outcome of one client's training in an asynchronous run.

    Attributes
    ----------
    client, round_index : int
        ``round_index`` is the version that was sent to the client.
    proposal : dict of arrays or None
        The state that this update alone would have produced; None if there is no valid update.
    received : dict of arrays
        The state that the client started from.
    reply : Reply or None
    missing : str
        Why there is no proposal.
    gone : bool
        The client is lost for the rest of the run.
    """

    client: int
    round_index: int
    proposal: NamedArrays | None
    received: NamedArrays
    reply: Reply | None = None
    missing: str = ""
    gone: bool = False


class InFlight(NamedTuple):
    """A simulated client's training in progress; its outcome is determined when the state is sent.

    Attributes
    ----------
    client, round_index : int
        ``round_index`` is the version that was sent to the client.
    end, joule : float
        Simulated time in seconds at which it ends, and the energy used until then.
    lost : bool
        The client crashes before it replies.
    """

    client: int
    round_index: int
    end: float
    lost: bool
    joule: float


@dataclass(frozen=True, slots=True)
class InFlightSnapshot:
    """All trainings in progress, and the states that they started from, by version."""

    flights: list[InFlight]
    states: dict[int, NamedArrays]


class Stream(Protocol):
    """Clients of an asynchronous run; each trains from one state at a time."""

    def send(self, client: int, round_index: int, down: NamedArrays) -> None:
        """Start a client's training from ``down``, version ``round_index``."""

    def ready(self, client: int) -> bool:
        """Return whether a client would start at once."""

    def next(self) -> AsyncResult:
        """Wait for the next outcome."""

    def metrics(self) -> dict[str, float]:
        """Return metrics besides those of the replies, accumulated since the last call."""

    def snapshot(self) -> InFlightSnapshot | None:
        """Return the trainings in progress for a checkpoint; None if only the clients themselves have them."""

    def restore(self, snapshot: InFlightSnapshot) -> None:
        """Restore trainings in progress from a checkpoint, before anything is sent."""


class ClientPool(Protocol):
    """The clients of a run."""

    @property
    def population(self) -> int:
        """Number of clients."""

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Draw the clients of round ``round_index``, ascending, so that ``size`` may reply; ``seed`` is the run's."""

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Continue after the rounds of ``history``."""

    def round(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> RoundResult:
        """Train the cohort from ``down`` and sum the updates."""

    def stream(self, method: FederatedMethod) -> Stream:
        """Return the same clients for asynchronous training."""

    def save_client_states(self, round_index: int) -> None:
        """Have every client with state save it as of this round.

        Called before the server saves its checkpoint, so that the newest checkpoint has matching client states.
        """

    def finish(self) -> None:
        """Tell all clients that the run is over, after the last round."""
