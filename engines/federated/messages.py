"""Messages of a round, the same on every engine: the state sent to clients, and the updates they send back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ...core.bounds import cut
from ...core.control import Control
from ...core.errors import WireError
from ...core.message import Message, Tensor
from ...wire.pack import pack, unpack
from .methods import Update
from .tree import NamedArrays

#: Kind of the messages with the state.
STATE = "model"
#: Kind of the messages with an update.
UPDATE = "update"

#: Shapes and dtypes by tensor name.
Expected: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True, slots=True)
class Keep(Control, what="keep"):
    """The server's request to save the client state as of the message's round."""


@dataclass(frozen=True, slots=True)
class Kept(Control, what="kept"):
    """A client's confirmation that its state is saved."""


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    """The end of the run."""


@dataclass(frozen=True, slots=True)
class UpdateHeader(Control, kind=UPDATE):
    """The scalars of an update; see :class:`~farshore.engines.federated.methods.Update`."""

    samples: int
    steps: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declined(Control, what="declined", kind=UPDATE):
    """A client's answer to a round in which it cannot train."""

    reason: str


#: The reason of a client without data.
NO_SAMPLES = "it has no training samples"

_DECLINED, _LONGEST_REASON = "did not train: ", 300


def model_message(round_index: int, tensors: Mapping[str, Tensor]) -> Message:
    """Create the message with the state for the cohort of round ``round_index``."""
    return Message(STATE, round=round_index, tensors=tensors)


def update_message(round_index: int, update: Update, tensors: Mapping[str, Tensor]) -> Message:
    """Create the message with a client's update of round ``round_index``, its arrays encoded as ``tensors``."""
    header = UpdateHeader(update.samples, update.steps, update.loss, update.metrics)
    return header.message(round=round_index, tensors=tensors)


def declined_message(round_index: int, reason: str) -> Message:
    """Create the message of a client that cannot train in round ``round_index``."""
    return Declined(cut(reason, _LONGEST_REASON)).message(round=round_index)


def is_declined(why: str) -> bool:
    """Whether a client was left out of a round because it could not train, according to the round's ``missing``."""
    return why.startswith(_DECLINED)


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
    """An update cannot be used: the client declined, wrong shapes, non-finite values, another round."""


def read_update(message: Message, round_index: int, expected: Expected) -> Update:
    """Read an update whose arrays, still encoded as sent, have the expected names, shapes and dtypes.

    Raises
    ------
    UpdateError
        The update is invalid, or the client has declined.
    """
    if message.kind != UPDATE or message.round != round_index:
        raise UpdateError(
            f"expected its update for round {round_index}, got a '{message.kind}' message for round {message.round}"
        )
    tensors = arrays(message)
    try:
        if Declined.matches(message):
            raise UpdateError(_DECLINED + cut(Declined.read(message, "its answer").reason, _LONGEST_REASON))
        check_tensors(tensors, expected)
        header = UpdateHeader.read(message, "its update")
    except WireError as error:
        raise UpdateError(str(error)) from None
    if not (header.samples > 0 and header.steps > 0):
        raise UpdateError(f"samples and steps must be positive, got {header.samples} samples and {header.steps} steps")
    return Update(tensors, header.samples, header.steps, header.loss, dict(header.metrics))


def check_tensors(tensors: NamedArrays, expected: Expected) -> None:
    """Raise :class:`UpdateError` unless names, shapes and dtypes are as expected."""
    if tensors.keys() != expected.keys():
        raise UpdateError(f"expected tensors {sorted(expected)}, got {sorted(tensors)}")
    for name, (shape, dtype) in expected.items():
        got = tensors[name]
        if (got.shape, got.dtype) != (shape, dtype):
            raise UpdateError(f"expected '{name}' as {dtype} {list(shape)}, got {got.dtype} {list(got.shape)}")
