"""What crosses the wire in a round: the state on its way down, an update on its way up, the same on every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ...core.message import Message, Scalar, Tensor
from ...wire.pack import pack, unpack
from .methods import Update
from .tree import Part

#: Shapes and types by name.
Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_NEEDED = ("samples", "steps", "loss")

#: Further figures that a client may tell.
MOST_FIGURES = 32


def model_message(round_index: int, tensors: Mapping[str, Tensor]) -> Message:
    """The state, for the cohort of round ``round_index``."""
    return Message("model", round=round_index, tensors=tensors)


def update_message(round_index: int, update: Update, tensors: Mapping[str, Tensor]) -> Message:
    """A client's update of round ``round_index``, its arrays as ``tensors``."""
    fields = {**update.figures, "samples": update.samples, "steps": update.steps, "loss": update.loss}
    return Message("update", round=round_index, tensors=tensors, fields=fields)


def arrays(message: Message) -> Part:
    """The named arrays of a message that arrived; they may be read-only."""
    return {name: tensor.array for name, tensor in message.tensors.items()}


def as_it_arrives(message: Message) -> Message:
    """What the other end gets: the message itself, or another where an encoding loses something."""
    if not any(t.encoding is not None and t.encoding.lossy for t in message.tensors.values()):
        return message
    packed = pack(message)
    return unpack(packed.header, memoryview(b"".join(packed.payload)))


class UpdateError(Exception):
    """An update is not one: of other shapes, not finite, of another round."""


def read_update(message: Message, round_index: int, expected: Expected) -> Update:
    """An update with its arrays as they traveled, of the names, shapes and types expected.

    Raises
    ------
    UpdateError
        It must not be added, and why.
    """
    if message.kind != "update" or message.round != round_index:
        raise UpdateError(f"it sent a '{message.kind}' of round {message.round} instead of its update of {round_index}")
    tensors = arrays(message)
    check_tensors(tensors, expected)
    samples, steps, loss = (message.fields.get(n) for n in _NEEDED)
    if not isinstance(samples, int) or not isinstance(steps, int) or not isinstance(loss, float):
        raise UpdateError("it does not say how many samples and steps it took, and with which loss")
    if not (samples > 0 and steps > 0):
        raise UpdateError(f"it says that it took {steps} steps on {samples} samples")
    figures = _figures(message.fields) if len(message.fields) > len(_NEEDED) else {}
    return Update(tensors, samples, steps, loss, figures)


def _figures(fields: Mapping[str, Scalar]) -> dict[str, float]:
    """What else a client tells; whoever reads it takes the names that it knows."""
    if len(fields) > len(_NEEDED) + MOST_FIGURES:
        raise UpdateError(f"it tells {len(fields) - len(_NEEDED)} figures, more than {MOST_FIGURES}")
    return {name: value for name, value in fields.items() if name not in _NEEDED and isinstance(value, float)}


def check_tensors(tensors: Part, expected: Expected) -> None:
    """Raise :class:`UpdateError` unless names, shapes and types are the expected ones."""
    if tensors.keys() != expected.keys():
        raise UpdateError(f"it sent {sorted(tensors)} instead of {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        got = tensors[name]
        if (got.shape, got.dtype) != (shape, dtype):
            raise UpdateError(f"its '{name}' are {got.dtype} {list(got.shape)}, not {dtype} {list(shape)}")
