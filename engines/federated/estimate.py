"""Plans the traffic of synchronous rounds: encodes the messages of a run with the state of a new model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from ...core.errors import ConfigError
from ...core.message import Message
from ...core.traffic_plan import Flow, Setting, TrafficPlan, handshake_flows
from ...models.flat_params import FlatModel
from .assets import Assets
from .client_pool import cohort
from .client_training import prepare
from .codec import UpdateCodec
from .config import FederatedConfig
from .exchange import asset_exchange, checkpoint_exchange, end_exchange
from .messages import NO_SAMPLES, declined_message
from .methods import FederatedMethod, Update, Work
from .task import Task
from .task_hooks import ReportingTask, SizedTask
from .tree import NamedArrays

#: If a task has to build batches to count them, the samples and steps of this many clients stand for those of all.
SAMPLED_CLIENTS = 200


class RoundsPlan:
    """The traffic of synchronous rounds in which every client replies.

    Parameters
    ----------
    config : FederatedConfig
    setting : Setting
    task : Task
    codec : UpdateCodec
    assets : Assets or None

    Raises
    ------
    ConfigError
        The schedule is asynchronous, or cohorts are larger than the population.
    """

    def __init__(
        self, config: FederatedConfig, setting: Setting, task: Task, codec: UpdateCodec, assets: Assets | None
    ) -> None:
        if config.schedule != "sync":
            raise ConfigError(
                f"the traffic of schedule '{config.schedule}' depends on the order of replies and cannot be estimated",
                hint="set schedule=sync, or simulate the run: farshore simulate",
            )
        if config.per_round > len(setting.nodes):
            raise ConfigError(
                f"per_round is {config.per_round}, but there are only {len(setting.nodes)} nodes",
                hint="give --nodes N, or lower per_round",
            )
        self._config, self._setting, self._task = config, setting, task
        self._codec, self._assets = codec, assets
        self._flat: FlatModel = task.model()
        self._method: FederatedMethod = task.method(self._flat)
        self._notes: list[str] = []

    def plan(self) -> TrafficPlan:
        """Return the flows of the whole run."""
        names = self._setting.nodes
        flows = [*handshake_flows(names), *self._asset_flows(), *self._states(), *self._updates(), *self._saves()]
        flows += [Flow.of(direction, message, range(len(names))) for direction, message in end_exchange()]
        return TrafficPlan("round", names, flows, self._notes)

    @cached_property
    def _cohorts(self) -> dict[int, list[int]]:
        size, population = self._config.per_round, len(self._setting.nodes)
        rounds = range(1, self._config.rounds + 1)
        return {round_index: cohort(self._setting.seed, round_index, population, size) for round_index in rounds}

    @cached_property
    def _rounds_of(self) -> dict[int, list[int]]:
        """Rounds by client."""
        found: dict[int, list[int]] = defaultdict(list)
        for round_index, clients in self._cohorts.items():
            for client in clients:
                found[client].append(round_index)
        return found

    @cached_property
    def _state(self) -> tuple[Message, NamedArrays]:
        down = self._method.sent(self._method.start(self._flat))
        message = self._codec.encode_state(1, down)
        return message, self._codec.received_state(message, down)

    def _asset_flows(self) -> Iterator[Flow]:
        """The assets, offered to each client before its first round, and sent if it cannot create them."""
        if self._assets is None:
            return
        clients = np.array(list(self._rounds_of), np.int64)
        first = np.array([rounds[0] for rounds in self._rounds_of.values()], np.int64)
        for direction, message in asset_exchange(self._assets, lacking=self._assets.ships):
            yield Flow(direction, message, clients, first)

    def _states(self) -> Iterator[Flow]:
        pairs = [(client, round_index) for round_index, clients in self._cohorts.items() for client in clients]
        clients, rounds = np.array(pairs, np.int64).T
        yield Flow("down", self._state[0], clients, rounds)

    def _updates(self) -> Iterator[Flow]:
        """Updates, grouped by the encoded length of the samples and steps in them."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        sizes = self._work_sizes(list(self._rounds_of))
        for client, (samples, steps) in sizes.items():
            groups[samples.bit_length(), steps.bit_length()].append(client)
        for clients in groups.values():
            pairs = [(client, round_index) for client in clients for round_index in self._rounds_of[client]]
            senders, rounds = np.array(pairs, np.int64).T
            yield Flow("up", self._update(*sizes[clients[0]]), senders, rounds)

    def _work_sizes(self, clients: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Samples and steps of each client, the same in all rounds."""
        if isinstance(self._task, SizedTask):
            return {client: self._task.work_size(client) for client in clients}
        found = {}
        for client in clients[:SAMPLED_CLIENTS]:
            work = prepare(partial(self._task.work, self._flat, client, 1))
            found[client] = (work.samples, len(work.batches)) if isinstance(work, Work) else (0, 0)
        if rest := clients[SAMPLED_CLIENTS:]:
            known = list(found.values())
            found |= {client: known[index % len(known)] for index, client in enumerate(rest)}
            self._notes.append(
                f"samples and steps of {len(rest):,} clients are assumed equal to those of {SAMPLED_CLIENTS} others, "
                "which may change the size of an update by a byte or two"
            )
        return found

    def _update(self, samples: int, steps: int) -> Message:
        if not samples:
            return declined_message(1, NO_SAMPLES)
        _, received = self._state
        rng = np.random.default_rng(0)  # any finite values do: sizes do not depend on them
        arrays = {
            name: rng.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array.copy()
            for name, array in self._method.reply(received).items()
        }
        reports = self._task.reports if isinstance(self._task, ReportingTask) else ()
        update = Update(arrays, samples, steps, 0.0, dict.fromkeys(reports, 0.0))
        return self._codec.encode_update(1, update, received, {})

    def _saves(self) -> Iterator[Flow]:
        """Requests to all clients to save their state before the server's checkpoints, and the confirmations."""
        every, last = self._config.checkpoint_every, self._config.rounds
        rounds = [n for n in range(1, last + 1) if n == last or n % every == 0]
        clients = range(len(self._setting.nodes))
        for direction, message in checkpoint_exchange():
            yield Flow.of(direction, message, clients, rounds)
