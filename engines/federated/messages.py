"""Messages of a round, the same on every engine: the state sent to clients, and the updates they send back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ...core.message import Message, Scalar, Tensor
from ...wire.pack import pack, unpack
from .methods import Update
from .tree import NamedArrays

#: Shapes and dtypes by tensor name.
Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_REQUIRED = ("samples", "steps", "loss")

#: Maximum number of further figures in an update.
MOST_FIGURES = 32


def model_message(round_index: int, tensors: Mapping[str, Tensor]) -> Message:
    """Create the message with the state for the cohort of round ``round_index``."""
    return Message("model", round=round_index, tensors=tensors)


def update_message(round_index: int, update: Update, tensors: Mapping[str, Tensor]) -> Message:
    """Create the message with a client's update of round ``round_index``, its arrays encoded as ``tensors``."""
    fields = {**update.figures, "samples": update.samples, "steps": update.steps, "loss": update.loss}
    return Message("update", round=round_index, tensors=tensors, fields=fields)


def arrays(message: Message) -> NamedArrays:
    """Return the named arrays of a received message; they may be read-only."""
    return {name: tensor.array for name, tensor in message.tensors.items()}


def as_received(message: Message) -> Message:
    """Return the message as the other end receives it; the same object unless an encoding is lossy."""
    if not any(t.encoding is not None and t.encoding.lossy for t in message.tensors.values()):
        return message
    packed = pack(message)
    return unpack(packed.header, memoryview(b"".join(packed.payload)))


class UpdateError(Exception):
    """An update cannot be used: wrong shapes, non-finite values, another round."""


def read_update(message: Message, round_index: int, expected: Expected) -> Update:
    """Read an update whose arrays, still encoded as sent, have the expected names, shapes and dtypes.

    Raises
    ------
    UpdateError
        The update is invalid.
    """
    if message.kind != "update" or message.round != round_index:
        raise UpdateError(
            f"expected its update for round {round_index}, got a '{message.kind}' message for round {message.round}"
        )
    tensors = arrays(message)
    check_tensors(tensors, expected)
    samples, steps, loss = (message.fields.get(n) for n in _REQUIRED)
    if not isinstance(samples, int) or not isinstance(steps, int) or not isinstance(loss, float):
        raise UpdateError("samples, steps or loss is missing or has the wrong type")
    if not (samples > 0 and steps > 0):
        raise UpdateError(f"samples and steps must be positive, got {samples} samples and {steps} steps")
    figures = _figures(message.fields) if len(message.fields) > len(_REQUIRED) else {}
    return Update(tensors, samples, steps, loss, figures)


def _figures(fields: Mapping[str, Scalar]) -> dict[str, float]:
    """Further figures of an update; callers pick the names that they know."""
    if len(fields) > len(_REQUIRED) + MOST_FIGURES:
        raise UpdateError(f"{len(fields) - len(_REQUIRED)} figures exceed the limit of {MOST_FIGURES}")
    return {name: value for name, value in fields.items() if name not in _REQUIRED and isinstance(value, float)}


def check_tensors(tensors: NamedArrays, expected: Expected) -> None:
    """Raise :class:`UpdateError` unless names, shapes and dtypes are as expected."""
    if tensors.keys() != expected.keys():
        raise UpdateError(f"expected tensors {sorted(expected)}, got {sorted(tensors)}")
    for name, (shape, dtype) in expected.items():
        got = tensors[name]
        if (got.shape, got.dtype) != (shape, dtype):
            raise UpdateError(f"expected '{name}' as {dtype} {list(shape)}, got {got.dtype} {list(got.shape)}")
