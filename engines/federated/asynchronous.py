"""Federated runs that wait for nobody: every reply (FedAsync) or every K of them (FedBuff) make a version of the model.

The clients are those of the rounds. A client is never given the same version twice: it would send the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import ConfigError, RunFailedError
from ...core.session import ServerSession
from ...runs.history import History
from .client_pool import AsyncResult, ClientPool, InFlight, UnderWay
from .config import Asynchrony, FederatedConfig
from .methods import FLOATS, INTEGERS, FederatedMethod
from .round_recorder import RoundRecorder
from .rounds import Rounds
from .task import Task
from .task_hooks import refined
from .tree import Part

_TRIES = 64
_SEEN, _UNDER_WAY = "seen/", "under_way"


def rounds_of(
    session: ServerSession, task: Task, fleet: ClientPool, schedule: FederatedConfig
) -> Rounds | AsynchronousRounds:
    """The server's side of a run by its schedule; same arguments and errors as of the two classes."""
    kind = Rounds if schedule.schedule == "sync" else AsynchronousRounds
    return kind(session, task, fleet, schedule)


def staleness_weight(settings: Asynchrony, tau: int) -> float:
    """``s(tau)`` of a reply that is ``tau`` versions old (Xie 2019, section 5.2).

    The polynomial with ``a = 0.5`` is FedBuff's ``1 / sqrt(1 + tau)`` (Nguyen 2022, section 5).
    """
    if settings.staleness == "constant":
        return 1.0
    if settings.staleness == "hinge":
        return 1.0 if tau <= settings.b else 1.0 / (settings.a * (tau - settings.b) + 1.0)
    return float((1.0 + tau) ** -settings.a)


def mixed(state: Part, proposal: Part, share: float) -> Part:
    """FedAsync: ``(1 - share) state + share proposal``; integers rounded (Xie 2019, algorithm 1)."""
    floats = state[FLOATS] + np.float32(share) * (proposal[FLOATS] - state[FLOATS])
    integers = np.rint(state[INTEGERS] + share * (proposal[INTEGERS] - state[INTEGERS]))
    return {FLOATS: floats, INTEGERS: integers.astype(np.int64)}


def buffered(state: Part, moves: Sequence[tuple[float, Part, Part]], lr: float) -> Part:
    """FedBuff: ``state + lr / K · sum of weight · (proposal - seen)`` (Nguyen 2022, algorithm 1).

    Parameters
    ----------
    state : dict of arrays
    moves : sequence of (weight, proposal, seen)
        In the order of the sum.
    lr : float
    """
    floats = np.zeros_like(state[FLOATS])
    integers = np.zeros(state[INTEGERS].shape)
    for weight, proposal, seen in moves:
        floats += np.float32(weight) * (proposal[FLOATS] - seen[FLOATS])
        integers += weight * (proposal[INTEGERS] - seen[INTEGERS])
    scale = lr / len(moves)
    moved = np.rint(state[INTEGERS] + scale * integers).astype(np.int64)
    return {FLOATS: state[FLOATS] + np.float32(scale) * floats, INTEGERS: moved}


def packed(state: Part, under_way: UnderWay | None) -> tuple[Part, dict[str, Any]]:
    """A checkpoint's tensors and words: as many states as there are versions that clients still train from."""
    if under_way is None:
        return state, {}
    states = {f"{_SEEN}{n}/{name}": array for n, seen in under_way.seen.items() for name, array in seen.items()}
    return {**state, **states}, {_UNDER_WAY: under_way.flights}


def unpacked(tensors: Part, meta: Mapping[str, Any]) -> tuple[Part, UnderWay | None]:
    """What :func:`packed` was given."""
    state, seen = Part(), dict[int, Part]()
    for name, array in tensors.items():
        if name.startswith(_SEEN):
            round_index, own = name.removeprefix(_SEEN).split("/", 1)
            seen.setdefault(int(round_index), {})[own] = array
        else:
            state[name] = array
    if _UNDER_WAY not in meta:
        return state, None
    return state, UnderWay([InFlight(*flight) for flight in meta[_UNDER_WAY]], seen)


class AsynchronousRounds:
    """An asynchronous run on the server; a round is a version of the model.

    Parameters
    ----------
    session : ServerSession
    task : Task
    fleet : Fleet
    schedule : FederatedConfig

    Raises
    ------
    ConfigError
        The method sends or keeps more than a model: control variates and normalizers belong to a common round.
    RunFailedError
        More clients are to train at a time than there are.
    """

    def __init__(self, session: ServerSession, task: Task, fleet: ClientPool, schedule: FederatedConfig) -> None:
        self._session, self._task, self._fleet, self._schedule = session, task, fleet, schedule
        self._settings, self._flat = schedule.asynchrony, task.model()
        method = task.method(self._flat)
        self.state: Part = method.start(self._flat)
        self._refuse(method)
        self._concurrency = self._settings.concurrency or schedule.per_round
        if self._concurrency > fleet.population:
            raise RunFailedError(
                f"{self._concurrency} clients at a time are more than the {fleet.population} that there are",
                hint="lower asynchrony.concurrency or per_round, or let more nodes join",
            )
        self._wanted = (self._settings.buffer or schedule.per_round) if schedule.schedule == "fedbuff" else 1
        self._history = History(session.run.directory, session.resume_step or 0)
        self._sent = 0
        self._busy: set[int] = set()
        saved = session.load_checkpoint(session.resume_step) if session.resume_step is not None else None
        if saved is not None:
            fleet.resume(self._history.entries)
        self._chronicle = RoundRecorder(session, task, self._flat, schedule)
        self._stream, self._method = fleet.stream(method), method
        if saved is not None:
            self._go_on(*saved)
        self._gone: set[int] = set()
        self._had: set[int] = set()  # who was given the current version
        self._buffer: list[AsyncResult] = []
        self._missing: dict[str, str] = {}

    def run(self) -> list[dict[str, Any]]:
        """Run to the last version; returns one entry per version."""
        with self._history as history:
            while self._next <= self._schedule.rounds:
                self._session.check_cancelled()
                self._dispatch()
                if self._busy:
                    self._take(self._stream.next())
                elif not self._buffer:
                    raise RunFailedError(f"version {self._next}: nobody is left who answers")
                # Where nobody is left to ask, the version is made of fewer.
                if len(self._buffer) == self._wanted or (self._buffer and not self._can_go_on()):
                    self._update()
        return history.entries

    def _go_on(self, tensors: Part, meta: Mapping[str, Any]) -> None:
        """From a checkpoint: what was under way then is so again where it was kept, and asked for anew otherwise."""
        self._sent = int(meta["sent"])
        self.state, under_way = unpacked(tensors, meta)
        if under_way is not None:
            self._stream.take_up(under_way)
            self._busy = {flight.client for flight in under_way.flights}
        else:
            self._session.log(
                f"going on after version {self._next - 1}: what clients had under way is lost, others are asked instead"
            )

    @property
    def _next(self) -> int:
        """The version that replies are gathered for."""
        return len(self._history.entries) + 1

    def _refuse(self, method: FederatedMethod) -> None:
        model = {FLOATS, INTEGERS}
        if method.remembers(self._flat) or self.state.keys() != model or method.reply(self.state).keys() != model:
            raise ConfigError(
                f"the method needs whole rounds: it cannot run with schedule '{self._schedule.schedule}'",
                hint="choose fedavg or fedprox, or schedule: sync",
            )

    def _dispatch(self) -> None:
        """Keep as many clients busy as may be."""
        while len(self._busy) < self._concurrency and (client := self._choose()) is not None:
            self._sent += 1
            self._busy.add(client)
            self._had.add(client)
            self._stream.send(client, self._next, self._method.sent(self.state))

    def _can_go_on(self) -> bool:
        return bool(self._busy) or len(self._gone | self._had) < self._fleet.population

    def _choose(self) -> int | None:
        """Any client that is idle and has not had this version, if possible one that is on; None if there is none."""
        out, population = self._busy | self._gone | self._had, self._fleet.population
        if len(out) == population:
            return None
        generator = self._session.run.seed.child("dispatch", self._sent).numpy()
        for client in generator.integers(population, size=_TRIES):
            if int(client) not in out and self._stream.ready(int(client)):
                return int(client)
        idle = np.setdiff1d(np.arange(population), np.fromiter(out, np.int64, len(out)))
        ready = [client for client in idle if self._stream.ready(int(client))]
        return int(generator.choice(ready or idle))

    def _take(self, arrival: AsyncResult) -> None:
        self._busy.discard(arrival.client)
        if arrival.gone:
            self._gone.add(arrival.client)
        if arrival.proposal is None:
            self._missing[str(arrival.client)] = arrival.missing
            self._session.log(f"version {self._next}: nothing of client {arrival.client}: {arrival.missing}")
        else:
            self._buffer.append(arrival)

    def _update(self) -> None:
        round_index = self._next
        # In the order of clients, so that who answered first within a version does not change its bits.
        replies = sorted(self._buffer, key=lambda arrival: (arrival.client, arrival.round_index))
        stale = [round_index - reply.round_index for reply in replies]
        weights = [staleness_weight(self._settings, tau) for tau in stale]
        proposals = [reply.proposal for reply in replies if reply.proposal is not None]
        if self._schedule.schedule == "fedasync":
            self.state = mixed(self.state, proposals[0], self._settings.alpha * weights[0])
        else:
            moves = [(w, p, reply.seen) for w, p, reply in zip(weights, proposals, replies, strict=True)]
            self.state = buffered(self.state, moves, self._settings.server_lr)
        self.state = refined(self._task, self._flat, self.state, round_index)
        told = [reply.reply for reply in replies if reply.reply is not None]
        entry = {
            "round": round_index,
            "cohort": [reply.client for reply in replies],
            "missing": self._missing,
            **self._stream.figures(),
            "staleness": float(np.mean(stale)),
            **self._chronicle.replies(told),
        }
        self._buffer, self._missing, self._had = [], {}, set()
        self._tell(round_index, entry)

    def _tell(self, round_index: int, entry: dict[str, Any]) -> None:
        seconds = self._chronicle.complete(entry, self.state)
        self._history.append(entry)
        figures = self._chronicle.tell(entry, {"test": seconds})
        if self._chronicle.checkpoint_due(round_index):
            self._fleet.keep(round_index)
            self._chronicle.keep(entry, self.state)
            self._history.sync()
            tensors, meta = packed(self.state, self._stream.under_way())
            self._session.save_checkpoint(round_index, tensors, {"sent": self._sent, **meta})
        self._session.progress(round_index, self._schedule.rounds, unit="version", **figures)
