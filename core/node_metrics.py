"""Metrics that node programs send to the server: one message of the kind ``metrics``, its fields are the values."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import WireError
from .message import Message

KIND = "metrics"

#: Most values of one message, and most characters of a name.
MAX_VALUES, MAX_NAME = 100, 100


def metrics_message(step: int, values: Mapping[str, float]) -> Message:
    """Return the message with a node's metrics."""
    return Message(KIND, step=step, fields={name: float(value) for name, value in values.items()})


def read_metrics(message: Message, node: str) -> dict[str, float]:
    """Return the metrics in a message of ``node``.

    Raises
    ------
    WireError
        There are too many, a name is too long, or a value is not a number.
    """
    if len(message.fields) > MAX_VALUES or message.tensors:
        raise WireError(f"node {node}: a metrics message has {MAX_VALUES} values at most and no tensors")
    values = {}
    for name, value in message.fields.items():
        if len(name) > MAX_NAME or isinstance(value, str | bytes | bool):
            raise WireError(f"node {node}: the metric '{name[:MAX_NAME]}' is not a number with a short name")
        values[name] = float(value)
    return values
