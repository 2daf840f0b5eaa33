"""Handshake before the first step: edges and cloud compare plan, model and classes, and agree on the schedule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError, RefusedError
from ...data.batches import natural_steps
from ...data.registry import task as task_entry
from .config import SplitFineTuning
from .plan import SplitPlan
from .protocol import Offer

#: Name of the score on the spare examples.
SPARE = "spare"


def digest_of(labels: Sequence[str]) -> str:
    """Return a hash of the ordered class names, 32 hex digits."""
    return hashlib.blake2b(json.dumps(list(labels)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps at which a run evaluates, averages and saves; a function of the settings and the steps per epoch."""

    steps_per_epoch: int
    config: SplitFineTuning

    @property
    def total(self) -> int:
        """Number of optimizer steps of the run."""
        full = self.steps_per_epoch * (self.config.epochs or task_entry(self.config.task).epochs)
        return min(full, self.config.steps) if self.config.steps else full

    @property
    def epochs(self) -> int:
        """Number of epochs of the run; an incomplete one counts."""
        return -(-self.total // self.steps_per_epoch)

    def evaluates(self, done: int) -> bool:
        """Return whether to evaluate after ``done`` steps."""
        return done == self.total or done % (self.config.eval_every or self.steps_per_epoch) == 0

    def scores_spare(self, done: int) -> bool:
        """Return whether the evaluation after ``done`` steps includes the spare examples."""
        return done == self.total and self.config.spare_samples > 0

    def averages(self, done: int) -> bool:
        """Return whether to average the edges' fronts after ``done`` steps."""
        every = self.config.average_every
        return bool(every) and (done % every == 0 or done == self.total)

    def saves(self, done: int) -> bool:
        """Return whether to save a checkpoint after ``done`` steps."""
        return done == self.total or done % self.config.checkpoint_every == 0


def agree_on_schedule(offers: Mapping[str, Offer], plan: SplitPlan, config: SplitFineTuning) -> Schedule:
    """Check that all plans and class names are equal; return the common schedule.

    An epoch lets every edge go through all of its examples once; the edge with the most examples relative to its share
    of a batch determines the number of steps.

    Raises
    ------
    RefusedError
        An edge's plan differs from the cloud's, or its class names from another edge's.
    """
    first, reference = next(iter(offers.items()))
    for node, offer in offers.items():
        try:
            plan.require_equal(SplitPlan.from_json(offer.plan))
        except RefusedError as error:
            raise RefusedError(f"edge '{node}' and the cloud: {error.message}", hint=error.hint) from error
        if offer.labels != reference.labels:
            raise RefusedError(
                f"the edges '{first}' and '{node}' have different classes for the task '{config.task}'",
                hint="give both the same data set; task=docstrings needs the same packages on both",
            )
    batch_sizes = shares(config.batch_size, len(offers))
    steps = max(natural_steps(o.examples, b) for o, b in zip(offers.values(), batch_sizes, strict=True))
    return Schedule(steps, config)


def shares(batch_size: int, edges: int) -> list[int]:
    """Split a batch over edges; return each one's number of examples. The first edges take the remainder.

    Raises
    ------
    ConfigError
        There are more edges than examples in a batch.
    """
    if edges > batch_size:
        raise ConfigError(f"batch_size={batch_size} cannot be shared by {edges} edges", hint="raise batch_size")
    return [batch_size // edges + (i < batch_size % edges) for i in range(edges)]
