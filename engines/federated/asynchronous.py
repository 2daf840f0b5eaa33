"""Asynchronous federated runs: each reply (FedAsync) or each K replies (FedBuff) produce a version of the model.

The clients are the same as in synchronous rounds. No client trains twice from the same version, since it would send
the same update again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import ConfigError, RunFailedError
from ...core.session import ServerSession
from .client_pool import AsyncResult, ClientPool, InFlight, InFlightSnapshot
from .config import Asynchrony, FederatedConfig
from .left_out import clients_text, group_by_reason
from .methods import FLOATS, INTEGERS
from .rounds import Rounds
from .server_run import ServerRun
from .task import Task
from .task_hooks import refine_state
from .tree import NamedArrays

#: Random clients tried before all idle ones are listed.
_ATTEMPTS = 64
#: Names in checkpoints.
_STATE_PREFIX, _IN_FLIGHT = "seen/", "under_way"


def create_rounds(
    session: ServerSession, task: Task, pool: ClientPool, schedule: FederatedConfig
) -> Rounds | AsynchronousRounds:
    """Create the server's side of a run for its schedule; arguments and errors as those of the two classes."""
    kind = Rounds if schedule.schedule == "sync" else AsynchronousRounds
    return kind(session, task, pool, schedule)


def staleness_weight(settings: Asynchrony, tau: int) -> float:
    """Weight ``s(tau)`` of an update that is ``tau`` versions old (Xie 2019, section 5.2).

    The polynomial with ``a = 0.5`` is FedBuff's ``1 / sqrt(1 + tau)`` (Nguyen 2022, section 5).
    """
    if settings.staleness == "constant":
        return 1.0
    if settings.staleness == "hinge":
        return 1.0 if tau <= settings.b else 1.0 / (settings.a * (tau - settings.b) + 1.0)
    return float((1.0 + tau) ** -settings.a)


def mix(state: NamedArrays, proposal: NamedArrays, share: float) -> NamedArrays:
    """Apply FedAsync's update ``(1 - share) state + share proposal``; integers are rounded (Xie 2019, algorithm 1)."""
    floats = state[FLOATS] + np.float32(share) * (proposal[FLOATS] - state[FLOATS])
    integers = np.rint(state[INTEGERS] + share * (proposal[INTEGERS] - state[INTEGERS]))
    return {FLOATS: floats, INTEGERS: integers.astype(np.int64)}


def apply_buffer(
    state: NamedArrays, changes: Sequence[tuple[float, NamedArrays, NamedArrays]], lr: float
) -> NamedArrays:
    """Apply FedBuff's update ``state + lr / K · Σ weight · (proposal - received)`` (Nguyen 2022, algorithm 1).

    Parameters
    ----------
    state : dict of arrays
    changes : sequence of (weight, proposal, received)
        In the order of the sum.
    lr : float
    """
    floats = np.zeros_like(state[FLOATS])
    integers = np.zeros(state[INTEGERS].shape)
    for weight, proposal, received in changes:
        floats += np.float32(weight) * (proposal[FLOATS] - received[FLOATS])
        integers += weight * (proposal[INTEGERS] - received[INTEGERS])
    scale = lr / len(changes)
    moved = np.rint(state[INTEGERS] + scale * integers).astype(np.int64)
    return {FLOATS: state[FLOATS] + np.float32(scale) * floats, INTEGERS: moved}


def pack_checkpoint(state: NamedArrays, snapshot: InFlightSnapshot | None) -> tuple[NamedArrays, dict[str, Any]]:
    """Return a checkpoint's tensors and metadata, with each version that clients still train from."""
    if snapshot is None:
        return state, {}
    states = {
        f"{_STATE_PREFIX}{n}/{name}": array for n, version in snapshot.states.items() for name, array in version.items()
    }
    return {**state, **states}, {_IN_FLIGHT: snapshot.flights}


def unpack_checkpoint(tensors: NamedArrays, meta: Mapping[str, Any]) -> tuple[NamedArrays, InFlightSnapshot | None]:
    """Return the arguments of :func:`pack_checkpoint`."""
    state, states = NamedArrays(), dict[int, NamedArrays]()
    for name, array in tensors.items():
        if name.startswith(_STATE_PREFIX):
            round_index, own = name.removeprefix(_STATE_PREFIX).split("/", 1)
            states.setdefault(int(round_index), {})[own] = array
        else:
            state[name] = array
    if _IN_FLIGHT not in meta:
        return state, None
    return state, InFlightSnapshot([InFlight(*flight) for flight in meta[_IN_FLIGHT]], states)


class AsynchronousRounds(ServerRun):
    """An asynchronous run on the server; a round is a version of the model; see :class:`ServerRun`.

    Raises
    ------
    ConfigError
        The method sends or keeps more than a model: control variates and normalizers need synchronous rounds.
    RunFailedError
        The concurrency exceeds the population.
    """

    def _prepare(self) -> None:
        self._check()
        schedule = self._schedule
        self._buffer_size = (self._settings.buffer or schedule.per_round) if schedule.schedule == "fedbuff" else 1
        self._stream = self._pool.stream(self._method)
        self._dispatched = 0
        self._busy: set[int] = set()
        self._gone: set[int] = set()
        self._has_version: set[int] = set()  # clients that were sent the current version
        self._buffer: list[AsyncResult] = []
        self._missing: dict[str, str] = {}

    def _check(self) -> None:
        method, model = self._method, {FLOATS, INTEGERS}
        if (
            method.client_state_sizes(self._flat)
            or self.state.keys() != model
            or method.reply(self.state).keys() != model
        ):
            raise ConfigError(
                f"the method needs synchronous rounds: it cannot run with schedule '{self._schedule.schedule}'",
                hint="choose fedavg or fedprox, or schedule: sync",
            )
        if self._concurrency > self._pool.population:
            raise RunFailedError(
                f"the concurrency is {self._concurrency}, but there are only {self._pool.population} clients",
                hint="lower asynchrony.concurrency or per_round, or let more nodes join",
            )

    @property
    def _settings(self) -> Asynchrony:
        return self._schedule.asynchrony

    @property
    def _concurrency(self) -> int:
        return self._settings.concurrency or self._schedule.per_round

    def run(self) -> list[dict[str, Any]]:
        """Run to the last version; return the history, one entry per version.

        Raises
        ------
        RunFailedError
            No reachable clients remain.
        """
        with self._history as history:
            while self._next <= self._schedule.rounds:
                self._session.check_cancelled()
                self._dispatch()
                if self._busy:
                    self._receive(self._stream.next())
                elif not self._buffer:
                    raise RunFailedError(f"version {self._next}: no clients remain that can reply{self._reasons()}")
                # If no further replies are possible, the version is made from fewer.
                if len(self._buffer) == self._buffer_size or (self._buffer and not self._more_replies_possible()):
                    self._update()
        return history.entries

    def _reasons(self) -> str:
        groups = group_by_reason({int(client): why for client, why in self._missing.items()})
        return "".join(f"; {clients_text(clients)}: {why}" for why, clients in list(groups.items())[:3])

    def _restore(self, tensors: NamedArrays, meta: Mapping[str, Any]) -> None:
        """Restore a checkpoint; trainings in progress are restored if it has them, and lost otherwise."""
        self._dispatched = int(meta["sent"])
        self.state, snapshot = unpack_checkpoint(tensors, meta)
        if snapshot is not None:
            self._stream.restore(snapshot)
            self._busy = {flight.client for flight in snapshot.flights}
        else:
            self._session.log(
                f"resuming after version {self._next - 1}: training in progress at that time is lost, new work is sent"
            )

    def _dispatch(self) -> None:
        """Send the current version to idle clients, up to the concurrency."""
        while len(self._busy) < self._concurrency and (client := self._choose()) is not None:
            self._dispatched += 1
            self._busy.add(client)
            self._has_version.add(client)
            self._stream.send(client, self._next, self._method.sent(self.state))

    def _more_replies_possible(self) -> bool:
        return bool(self._busy) or len(self._gone | self._has_version) < self._pool.population

    def _choose(self) -> int | None:
        """Choose an idle client that has not had this version, preferably a ready one; None if there is none."""
        excluded, population = self._busy | self._gone | self._has_version, self._pool.population
        if len(excluded) == population:
            return None
        generator = self._session.run.seed.child("dispatch", self._dispatched).numpy()
        for client in generator.integers(population, size=_ATTEMPTS):
            if int(client) not in excluded and self._stream.ready(int(client)):
                return int(client)
        idle = np.setdiff1d(np.arange(population), np.fromiter(excluded, np.int64, len(excluded)))
        ready = [client for client in idle if self._stream.ready(int(client))]
        return int(generator.choice(ready or idle))

    def _receive(self, result: AsyncResult) -> None:
        self._busy.discard(result.client)
        if result.gone:
            self._gone.add(result.client)
        if result.proposal is None:
            self._missing[str(result.client)] = result.missing
            self._session.log(f"version {self._next}: no update from client {result.client}: {result.missing}")
        else:
            self._buffer.append(result)

    def _update(self) -> None:
        round_index = self._next
        # In the order of clients, so that the order of arrival within a version does not change its bits.
        results = sorted(self._buffer, key=lambda result: (result.client, result.round_index))
        staleness = [round_index - result.round_index for result in results]
        weights = [staleness_weight(self._settings, tau) for tau in staleness]
        proposals = [result.proposal for result in results if result.proposal is not None]
        if self._schedule.schedule == "fedasync":
            self.state = mix(self.state, proposals[0], self._settings.alpha * weights[0])
        else:
            changes = [(w, p, result.received) for w, p, result in zip(weights, proposals, results, strict=True)]
            self.state = apply_buffer(self.state, changes, self._settings.server_lr)
        self.state = refine_state(self._task, self._flat, self.state, round_index)
        replies = [result.reply for result in results if result.reply is not None]
        entry = {
            "round": round_index,
            "cohort": [result.client for result in results],
            "missing": self._missing,
            **self._stream.metrics(),
            "staleness": float(np.mean(staleness)),
            **self._recorder.average_replies(replies),
        }
        self._buffer, self._missing, self._has_version = [], {}, set()
        metrics = self._record(entry, {})
        self._session.progress(round_index, self._schedule.rounds, unit="version", **metrics)

    def _checkpoint(self) -> tuple[NamedArrays, dict[str, Any]]:
        tensors, meta = pack_checkpoint(self.state, self._stream.snapshot())
        return tensors, {"sent": self._dispatched, **meta}
