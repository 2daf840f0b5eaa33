"""Dry runs of every rank of a training run: what each kind of step sends."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch

from ...core.message import Message
from ...core.traffic_plan import Setting
from ...models.devices import forked_generators
from ..collective.dry_run import Sent, dry_rank
from ..collective.tensors import to_wire
from .config import TrainingConfig
from .loop import evaluates, logs, step_figures
from .preconditioner import Preconditioner
from .protocol import BestState, Figures, Trained
from .task import TrainTask
from .training import Training, total_steps
from .training_state import load_shared, load_training, shared_arrays
from .workload import TrainingWorkload

#: Samples per batch of a dry run. The messages do not depend on them; batch normalization needs two.
_BATCH = 2
#: Steps after which DDP has rebuilt its buckets in the order in which gradients become ready.
_REBUILT = 2
#: Stands for the values of figures.
_FIGURE = 0.5


class DryRun:
    """Dry runs of every rank: groups the steps that send the same messages, and runs the first step of each group.

    Parameters
    ----------
    workload : TrainingWorkload
    config : TrainingConfig
    setting : Setting

    Attributes
    ----------
    size : int
        Number of ranks.
    transport : {"star", "peers"}
    total_steps : int
        Steps of the run.
    groups : Mapping
        Steps that send the same messages, by the first of them, in ascending order.
    sent : Mapping
        What each rank sends in a step, by the first step of its group.
    figures, evaluation, best, end : Message
        Rank 0's messages with the figures of a step, of an evaluation, with the best and with the final weights; the
        values are placeholders.
    parameters : int
        Number of trainable parameters.
    """

    def __init__(self, workload: TrainingWorkload[Any], config: TrainingConfig, setting: Setting) -> None:
        self._workload, self._config, self._setting = workload, config, setting
        self.size = len(setting.nodes)
        self.transport: Literal["star", "peers"] = "peers" if config.transport == "peers" else "star"
        self.total_steps = config.steps or total_steps(config, self._make_task(config), self.size)
        self._small = config.model_copy(
            update={"batch": min(_BATCH, config.batch), "device": "cpu", "steps": self.total_steps}
        )
        self._task = self._make_task(self._small)
        self.groups: Mapping[int, Sequence[int]] = {}
        self.sent: dict[int, list[Sent]] = defaultdict(list)
        self.figures = self.evaluation = self.best = self.end = Message("control")
        self.parameters = 0
        for rank in range(self.size):
            self._run_rank(rank)

    def steps_that(self, condition: Any) -> list[int]:
        """Return the numbers of steps done, from 1, for which ``condition(config, done, total)`` holds."""
        return [done for done in range(1, self.total_steps + 1) if condition(self._config, done, self.total_steps)]

    def _make_task(self, config: TrainingConfig) -> TrainTask[Any]:
        return self._workload.make_task(config, self._setting.seed, self._setting.find)

    def _fresh_task(self) -> TrainTask[Any]:
        try:
            return copy.deepcopy(self._task)  # much faster than to read its data again
        except (TypeError, RuntimeError):  # it has something that cannot be copied, such as an open file
            return self._make_task(self._small)

    def _run_rank(self, rank: int) -> None:
        with dry_rank(self.transport, rank, self.size) as drain, forked_generators(torch.device("cpu")):
            training = Training(self._small, self._fresh_task(), self._setting.seed, rank, self.size)
            load_training(training, {}, 0)
            initial = shared_arrays(training)
            training.wrap_ddp()
            self.groups = self.groups or self._group_steps(training.preconditioner)
            for step in self.groups:
                load_shared(training, initial)
                if training.preconditioner is not None:
                    training.preconditioner.set_dry_step(step)
                self._run_step(training, step)
                self.sent[step].append(drain())
            if rank == 0:
                self._record_messages(training)

    def _run_step(self, training: Training, step: int) -> None:
        losses = training.step(step)
        if logs(self._config, step + 1, self.total_steps):
            training.mean_over_ranks(losses)
        if evaluates(self._config, step + 1, self.total_steps):
            training.share_score()

    def _group_steps(self, preconditioner: Preconditioner | None) -> Mapping[int, Sequence[int]]:
        config, total = self._config, self.total_steps
        rebuilt = _REBUILT + (config.powersgd_start if config.compression == "powersgd" else 0)
        first: dict[Hashable, int] = {}
        groups: dict[int, list[int]] = defaultdict(list)
        for step in range(total):
            own = preconditioner.traffic_class(step) if preconditioner is not None else None
            shares = config.tracks_score and evaluates(config, step + 1, total)
            key = min(step, rebuilt), own, logs(config, step + 1, total), shares
            groups[first.setdefault(key, step)].append(step)
        return groups

    def _record_messages(self, training: Training) -> None:
        metrics = dict.fromkeys(training.task.metrics, _FIGURE)
        best_score = _FIGURE if self._config.keep_best else None
        self.parameters = training.parameters
        terms = dict.fromkeys(training.term_names, _FIGURE)
        self.figures = Figures(step_figures(training, 1, terms)).message()
        self.evaluation = Figures(metrics).message()
        tensors = {name: to_wire(tensor) for name, tensor in training.result().items()}
        self.best = BestState(_FIGURE).message(tensors=tensors)
        trained = Trained.with_result(metrics, self.total_steps, self.parameters, best_score)
        self.end = trained.message(tensors=tensors)
