"""Messages between an edge and the cloud; ``docs/methods/split_fine_tuning.md``, section 11, lists their tensors.

All carry the step and, where a step has several, the micro-batch that they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ...core.control import Control, Protocol

CLOUD = "the cloud"


def edge(node: str) -> str:
    """Return what error messages call the edge on a node."""
    return f"edge '{node}'"


# ---- before the first step -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer(Control, what="offer"):
    """An edge's description of itself; its first message.

    Attributes
    ----------
    plan : str
        The edge's :class:`~.plan.SplitPlan` as JSON.
    labels : str
        :func:`~.handshake.digest_of` the names of its classes.
    examples, parameters : int
        Number of its training examples, and of the parameters of its front.
    trains : bool
        Whether it needs gradients; False if its front is frozen.
    """

    plan: str
    labels: str
    examples: int
    parameters: int
    trains: bool

    def __post_init__(self) -> None:
        if self.examples < 1 or self.parameters < 0:
            raise ValueError(f"{self.examples} examples and {self.parameters} parameters")


@dataclass(frozen=True, slots=True)
class StepsPerEpoch(Control, what="schedule"):
    """The cloud's answer to all offers, from which both sides derive the schedule."""

    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ValueError(f"{self.steps_per_epoch} steps per epoch")


@dataclass(frozen=True, slots=True)
class CodecValues(Control, kind="codec"):
    """Initial values of the codec: from the first edge to the cloud, and from there to the other edges."""


# ---- a step ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstMicroBatch(Control, kind="activation"):
    """Codes and labels of an edge's first micro-batch of a step.

    Attributes
    ----------
    examples, micros : int
        Number of its examples and micro-batches in this step.
    """

    examples: int
    micros: int

    def __post_init__(self) -> None:
        if self.examples < 1 or not 1 <= self.micros <= self.examples:
            raise ValueError(f"{self.examples} examples in {self.micros} micro-batches")


@dataclass(frozen=True, slots=True)
class MicroBatch(Control, kind="activation"):
    """Codes and labels of another micro-batch."""


@dataclass(frozen=True, slots=True)
class Gradient(Control, kind="gradient"):
    """The cloud's gradients of the codes of a micro-batch."""


# ---- after a step ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrontWeights(Control, kind="weights"):
    """Differences of an edge's front from the last common weights; from the cloud, their mean."""


@dataclass(frozen=True, slots=True)
class EvaluationBatch(Control, kind="evaluation"):
    """Codes and labels of held-out examples."""


@dataclass(frozen=True, slots=True)
class Evaluated(Control, what="evaluated"):
    """The edge has sent all evaluation batches."""


@dataclass(frozen=True, slots=True)
class Saved(Control, what="saved"):
    """The cloud has saved its checkpoint; for edges that do not wait for gradients."""


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    """The cloud has all messages of the run."""


EvaluationMessage: TypeAlias = EvaluationBatch | Evaluated
EVALUATION: Protocol[EvaluationMessage] = Protocol(EvaluationBatch, Evaluated)
