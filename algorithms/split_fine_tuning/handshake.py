"""What both programs settle before the first step: the same plan, the same model, the same classes and steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError, RefusedError, WireError
from ...core.message import Message
from ...data.batches import natural_steps
from ...data.registry import task as task_entry
from .config import SplitFineTuning
from .plan import SplitPlan

#: What the score of the spare examples is called.
SPARE = "spare"


@dataclass(frozen=True, slots=True)
class Offer:
    """What an edge says of itself.

    Attributes
    ----------
    plan : SplitPlan
        Its plan of the split.
    examples, parameters : int
        How many training examples it has, and how large its front is.
    labels : str
        :func:`digest_of` the names of its classes.
    trains : bool
        Whether it wants gradients; a frozen front has no use for them.
    """

    plan: SplitPlan
    examples: int
    parameters: int
    labels: str
    trains: bool

    def message(self) -> Message:
        """As it travels."""
        numbers = {"examples": self.examples, "parameters": self.parameters, "trains": self.trains}
        return Message(
            "control", fields={"what": "offer", "plan": self.plan.to_json(), "labels": self.labels, **numbers}
        )

    @classmethod
    def of(cls, message: Message) -> Offer:
        """Read what :meth:`message` made.

        Raises
        ------
        WireError
            The message is something else.
        RefusedError
            The plan in it is no plan.
        """
        plan, labels, examples, parameters, trains = (
            message.fields.get(n) for n in ("plan", "labels", "examples", "parameters", "trains")
        )
        if (
            not (isinstance(plan, str) and isinstance(labels, str) and isinstance(trains, bool))
            or not (isinstance(examples, int) and isinstance(parameters, int))
            or examples < 1
        ):
            raise WireError(f"expected an edge's offer, got a '{message.kind}' message")
        return cls(SplitPlan.from_json(plan), examples, parameters, labels, trains)


def digest_of(labels: Sequence[str]) -> str:
    """32 hex digits over the names of the classes, in order."""
    return hashlib.blake2b(json.dumps(list(labels)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a run evaluates, averages and saves; a pure function of the configuration and the steps of an epoch."""

    steps_per_epoch: int
    config: SplitFineTuning

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        everything = self.steps_per_epoch * (self.config.epochs or task_entry(self.config.task).epochs)
        return min(everything, self.config.steps) if self.config.steps else everything

    @property
    def epochs(self) -> int:
        """Epochs that the run goes through, one that was only begun included."""
        return -(-self.total // self.steps_per_epoch)

    def evaluates(self, done: int) -> bool:
        """Whether the model is evaluated after ``done`` steps."""
        return done == self.total or done % (self.config.eval_every or self.steps_per_epoch) == 0

    def scores_spare(self, done: int) -> bool:
        """Whether the evaluation after ``done`` steps goes on to the spare examples."""
        return done == self.total and self.config.spare_samples > 0

    def averages(self, done: int) -> bool:
        """Whether the edges' fronts are averaged after ``done`` steps."""
        every = self.config.average_every
        return bool(every) and (done % every == 0 or done == self.total)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        return done == self.total or done % self.config.checkpoint_every == 0


def settle(offers: Mapping[str, Offer], plan: SplitPlan, config: SplitFineTuning) -> Schedule:
    """Compare the edges' plans with the cloud's, their classes with each other's; return the schedule they share.

    Every edge goes through all of its examples once an epoch; the edge with the most examples for its share of a batch
    decides how many steps that takes.

    Raises
    ------
    RefusedError
        An edge would train another model or another split, or gives its classes other names.
    """
    first, reference = next(iter(offers.items()))
    for node, offer in offers.items():
        try:
            plan.require_equal(offer.plan)
        except RefusedError as error:
            raise RefusedError(f"edge '{node}' and the cloud: {error.message}", hint=error.hint) from error
        if offer.labels != reference.labels:
            raise RefusedError(
                f"the edges '{first}' and '{node}' have different classes for the task '{config.task}'",
                hint="give both the same data set; docstrings needs the same packages on both",
            )
    parts = shares(config.batch_size, len(offers))
    steps = max(natural_steps(o.examples, b) for o, b in zip(offers.values(), parts, strict=True))
    return Schedule(steps, config)


def shares(batch_size: int, edges: int) -> list[int]:
    """How many examples of a step each edge contributes; the first ones take the remainder.

    Raises
    ------
    ConfigError
        There are more edges than examples in a step.
    """
    if edges > batch_size:
        raise ConfigError(f"batch_size={batch_size} cannot be shared by {edges} edges", hint="raise batch_size")
    return [batch_size // edges + (i < batch_size % edges) for i in range(edges)]
