"""Metrics that node programs send to the server: one message of the kind ``metrics``, figures as its fields."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import WireError
from .message import Message

KIND = "metrics"

#: Most figures of one message, and most characters of a name.
MAX_FIGURES, MAX_NAME = 100, 100


def metrics_message(step: int, values: Mapping[str, float]) -> Message:
    """The message that carries a node's figures."""
    return Message(KIND, step=step, fields={name: float(value) for name, value in values.items()})


def read_metrics(message: Message, node: str) -> dict[str, float]:
    """The figures of a message.

    Raises
    ------
    WireError
        There are too many, a name is too long, or a value is not a number.
    """
    if len(message.fields) > MAX_FIGURES or message.tensors:
        raise WireError(f"node {node}: a metrics message has {MAX_FIGURES} figures at most and no tensors")
    figures = {}
    for name, value in message.fields.items():
        if len(name) > MAX_NAME or isinstance(value, str | bytes | bool):
            raise WireError(f"node {node}: the metric '{name[:MAX_NAME]}' is not a number with a short name")
        figures[name] = float(value)
    return figures
