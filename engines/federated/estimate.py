"""What a run will send, before it runs: the messages of its rounds, made by the codec from a fresh model's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from ...core.errors import ConfigError
from ...core.message import Message
from ...core.traffic_plan import Flow, Setting, TrafficPlan, greetings
from ...models.flat_params import FlatModel
from .assets import Assets
from .client_pool import cohort
from .codec import UpdateCodec
from .config import FederatedConfig
from .methods import FederatedMethod, Update
from .task import Task
from .task_hooks import Counted, Observed
from .tree import Part

#: Where a task has to make batches to count them, the samples and steps of so many clients stand for those of all.
LOOKED_AT = 200


class RoundsPlan:
    """The flows of synchronous rounds in which everybody answers.

    Parameters
    ----------
    config : FederatedConfig
    setting : Setting
    task : Task
    codec : Codec
    briefing : Briefing or None

    Raises
    ------
    ConfigError
        The schedule does not wait for cohorts, or these are larger than the population.
    """

    def __init__(
        self, config: FederatedConfig, setting: Setting, task: Task, codec: UpdateCodec, briefing: Assets | None
    ) -> None:
        if config.schedule != "sync":
            raise ConfigError(
                f"what schedule '{config.schedule}' sends depends on who answers first, which no formula tells",
                hint="set schedule=sync, or simulate it: farshore simulate",
            )
        if config.per_round > len(setting.nodes):
            raise ConfigError(
                f"{config.per_round} clients a round are more than {len(setting.nodes)} nodes",
                hint="give --nodes N, or lower per_round",
            )
        self._config, self._setting, self._task = config, setting, task
        self._codec, self._briefing = codec, briefing
        self._flat: FlatModel = task.model()
        self._method: FederatedMethod = task.method(self._flat)
        self._notes: list[str] = []

    def plan(self) -> TrafficPlan:
        """All flows."""
        names = self._setting.nodes
        flows = [*greetings(names), *self._briefed(), *self._states(), *self._updates(), *self._kept()]
        flows.append(Flow.of("down", Message("control", fields={"what": "done"}), range(len(names))))
        return TrafficPlan("round", names, flows, self._notes)

    @cached_property
    def _cohorts(self) -> dict[int, list[int]]:
        size, population = self._config.per_round, len(self._setting.nodes)
        rounds = range(1, self._config.rounds + 1)
        return {round_index: cohort(self._setting.seed, round_index, population, size) for round_index in rounds}

    @cached_property
    def _where(self) -> dict[int, list[int]]:
        """Rounds by client."""
        found: dict[int, list[int]] = defaultdict(list)
        for round_index, clients in self._cohorts.items():
            for client in clients:
                found[client].append(round_index)
        return found

    @cached_property
    def _state(self) -> tuple[Message, Part]:
        down = self._method.sent(self._method.start(self._flat))
        message = self._codec.down(1, down)
        return message, self._codec.seen(message, down)

    def _briefed(self) -> Iterator[Flow]:
        """What every client must hold, before its first round."""
        if self._briefing is None:
            return
        clients = np.array(list(self._where), np.int64)
        first = np.array([rounds[0] for rounds in self._where.values()], np.int64)
        for direction, message in self._briefing.planned():
            yield Flow(direction, message, clients, first)

    def _states(self) -> Iterator[Flow]:
        pairs = [(client, round_index) for round_index, clients in self._cohorts.items() for client in clients]
        clients, numbers = np.array(pairs, np.int64).T
        yield Flow("down", self._state[0], clients, numbers)

    def _updates(self) -> Iterator[Flow]:
        """Updates by how long the numbers are that their clients tell of themselves."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        told = self._told(list(self._where))
        for client, (samples, steps) in told.items():
            alike[samples.bit_length(), steps.bit_length()].append(client)
        for clients in alike.values():
            pairs = [(client, round_index) for client in clients for round_index in self._where[client]]
            who, numbers = np.array(pairs, np.int64).T
            yield Flow("up", self._update(*told[clients[0]]), who, numbers)

    def _told(self, clients: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Samples and steps of each client; the same in all rounds."""
        if isinstance(self._task, Counted):
            return {client: self._task.counts(client) for client in clients}
        found = {}
        for client in clients[:LOOKED_AT]:
            work = self._task.work(self._flat, client, 1)
            found[client] = work.samples, len(work.batches)
        if rest := clients[LOOKED_AT:]:
            known = list(found.values())
            found |= {client: known[place % len(known)] for place, client in enumerate(rest)}
            self._notes.append(
                f"samples and steps of {len(rest):,} clients as those of {LOOKED_AT} others: a byte or two an update"
            )
        return found

    def _update(self, samples: int, steps: int) -> Message:
        _, seen = self._state
        rng = np.random.default_rng(0)  # numbers that any encoding can write; their values do not matter
        arrays = {
            name: rng.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array.copy()
            for name, array in self._method.reply(seen).items()
        }
        reports = self._task.reports if isinstance(self._task, Observed) else ()
        update = Update(arrays, samples, steps, 0.0, dict.fromkeys(reports, 0.0))
        return self._codec.up(1, update, seen, {})

    def _kept(self) -> Iterator[Flow]:
        """Everybody is told to save what they remember, and says so, before the server's own checkpoints."""
        every, last = self._config.checkpoint_every, self._config.rounds
        when = [n for n in range(1, last + 1) if n == last or n % every == 0]
        everybody = range(len(self._setting.nodes))
        yield Flow.of("down", Message("control", fields={"what": "keep"}), everybody, when)
        yield Flow.of("up", Message("control", fields={"what": "kept"}), everybody, when)
