"""What both programs settle before the first step: the same plan, the same model, the same number of steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...core.errors import ConfigError, RefusedError, WireError
from ...core.message import Message
from ...data.batches import natural_steps
from .config import SplitFineTuning


@dataclass(frozen=True, slots=True)
class Offer:
    """What an edge says of itself."""

    plan: str
    fingerprint: str
    examples: int

    def message(self) -> Message:
        """As it travels."""
        return Message("control", fields={"what": "offer", **asdict(self)})

    @classmethod
    def of(cls, message: Message) -> Offer:
        """Read what :meth:`message` made.

        Raises
        ------
        WireError
            The message is something else.
        """
        fields = {name: message.fields.get(name) for name in cls.__dataclass_fields__}
        if message.kind != "control" or message.fields.get("what") != "offer" or None in fields.values():
            raise WireError(f"expected an edge's offer, got a '{message.kind}' message")
        return cls(
            str(fields["plan"]),
            str(fields["fingerprint"]),
            int(fields["examples"] or 0),
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a run evaluates, averages and saves; a pure function of the configuration and the steps of an epoch."""

    steps_per_epoch: int
    config: SplitFineTuning

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        everything = self.steps_per_epoch * self.config.epochs
        return min(everything, self.config.steps) if self.config.steps else everything

    def evaluates(self, done: int) -> bool:
        """Whether the model is evaluated after ``done`` steps."""
        return done == self.total or done % (self.config.eval_every or self.steps_per_epoch) == 0

    def averages(self, done: int) -> bool:
        """Whether the edges' fronts are averaged after ``done`` steps."""
        every = self.config.average_every
        return bool(every) and (done % every == 0 or done == self.total)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        return done == self.total or done % self.config.checkpoint_every == 0

    def place(self, step: int) -> tuple[int, int]:
        """``(epoch, index within the epoch)`` of a step counted from 0."""
        return divmod(step, self.steps_per_epoch)


def settle(offers: dict[str, Offer], mine: Offer, config: SplitFineTuning) -> Schedule:
    """Compare every edge's offer with the cloud's own and return the schedule they share.

    Every edge goes through all of its examples once an epoch; the edge with the most examples for its share of a batch
    decides how many steps that takes.

    Raises
    ------
    RefusedError
        An edge would train another model or another plan.
    """
    for node, offer in offers.items():
        for what, theirs, ours in (
            ("plan of the split", offer.plan, mine.plan),
            ("model (fingerprint)", offer.fingerprint, mine.fingerprint),
        ):
            if theirs != ours:
                raise RefusedError(
                    f"edge '{node}' has another {what} than the cloud: {theirs[:16]} against {ours[:16]}",
                    cure="give both ends the same model files and the same versions of transformers",
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
        raise ConfigError(f"batch_size={batch_size} cannot be shared by {edges} edges", cure="raise batch_size")
    return [batch_size // edges + (i < batch_size % edges) for i in range(edges)]
