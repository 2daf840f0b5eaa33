"""The control messages of a training run, from rank 0 to the server program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.control import Control, Protocol
from ...core.message import Scalar
from ..collective.protocol import End

#: The metric that holds the steps of the whole run, in the messages that report progress.
TOTAL = "total"
#: Result of a run that keeps its best state.
BEST_SCORE = "best_score"


@dataclass(frozen=True, slots=True)
class Figures(Control, what="figures"):
    """Metrics of a step or of an evaluation; ``total``, an int, among them makes it a report of progress."""

    values: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class BestState(Control, what="best"):
    """The weights with the best score so far, as tensors of the message, whose step is that of the evaluation."""

    score: float


@dataclass(frozen=True, slots=True)
class Trained(End):
    """A rank has trained its last step; rank 0 adds its result, see :meth:`with_result`."""

    values: Mapping[str, Scalar] = field(default_factory=dict)

    @classmethod
    def with_result(
        cls, metrics: Mapping[str, float], steps: int, parameters: int, best_score: float | None = None
    ) -> Trained:
        """Return the message with which rank 0 ends the run.

        Parameters
        ----------
        metrics : Mapping
            The last evaluation.
        steps : int
            Steps that were done.
        parameters : int
            Number of trainable parameters.
        best_score : float, optional
            The score of the final weights, if the best state is kept and no earlier one was better.
        """
        values: dict[str, Scalar] = {**metrics, "steps": steps, "parameters": parameters}
        return cls(values if best_score is None else {**values, BEST_SCORE: best_score})


FROM_RANK_0: Protocol[Figures | BestState] = Protocol(Figures, BestState)
