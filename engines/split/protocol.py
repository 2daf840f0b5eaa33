"""Messages between a user's process and the server of its remote segment.

=============================  ===================================================
request                        reply
=============================  ===================================================
:class:`LoadBlock`             :class:`Done`
:class:`StartCodec`            :class:`CodecWeights`: reconstruction matrix and offset
:class:`LoadCodec`             :class:`Done`
:class:`Forward`               :class:`Output`
:class:`Backward`              :class:`Gradients`
:class:`Step`                  none
:class:`ReadBlock`             :class:`BlockWeights`
:class:`ReadCodec`             :class:`CodecWeights`
:class:`Close`                 :class:`Done`
=============================  ===================================================

All carry the optimizer step and the micro-batch that they belong to. Codes and gradients of codes are the tensor
``codes`` [M, w], described by the tensor ``lengths`` or ``mask``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from ...core.control import Control, Protocol

# ---- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadBlock(Control, kind="weights"):
    """Load a block's weights, which are the tensors; ``block`` is its index in the whole model."""

    block: int


@dataclass(frozen=True, slots=True)
class StartCodec(Control, what="start", kind="codec"):
    """Set the decoder to ``matrix`` [d, r] and ``offset`` [d], and the encoder by the first ``codes``.

    ``tokens`` is the padded length T of the batch.
    """

    tokens: int


@dataclass(frozen=True, slots=True)
class LoadCodec(Control, what="load", kind="codec"):
    """Load the codec's weights, which are the tensors."""


@dataclass(frozen=True, slots=True)
class Forward(Control, kind="activation"):
    """Run a forward pass on ``codes``.

    Attributes
    ----------
    train : bool
        Training mode.
    backward : bool
        Keep the graph for a backward pass, under ``id``.
    tokens : int
        Padded length T of the batch.
    id : int
        Number of the forward pass, from 1.
    free : tuple of int
        Earlier forward passes whose graphs are no longer needed.
    """

    train: bool
    backward: bool
    tokens: int
    id: int
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backward(Control, kind="gradient"):
    """Run a backward pass from the gradient ``codes`` of an output.

    Attributes
    ----------
    dropped, keep : bool, float
        What the user's process did to its gradients since the last message: set them to None, or multiplied them. The
        server does the same to its own, before the backward pass.
    id : int
        The forward pass.
    accumulate : bool
        Add to the gradients of the server's parameters.
    want : bool
        Reply the gradient of the forward pass's codes.
    retain : bool
        Keep the graph for another backward pass.
    """

    dropped: bool
    keep: float
    id: int
    accumulate: bool
    want: bool
    retain: bool

    def __post_init__(self) -> None:
        _check_factor(self.keep)


@dataclass(frozen=True, slots=True)
class Step(Control, what="step"):
    """Take an optimizer step; ``dropped`` and ``keep`` as in :class:`Backward`."""

    dropped: bool
    keep: float
    learning_rate: float

    def __post_init__(self) -> None:
        _check_factor(self.keep)
        if not math.isfinite(self.learning_rate) or self.learning_rate < 0:
            raise ValueError(f"invalid learning rate {self.learning_rate}")


@dataclass(frozen=True, slots=True)
class ReadBlock(Control, what="state"):
    """Reply a block's weights."""

    block: int


@dataclass(frozen=True, slots=True)
class ReadCodec(Control, what="codec"):
    """Reply the codec's weights."""


@dataclass(frozen=True, slots=True)
class Close(Control, what="close"):
    """End the run."""


Request: TypeAlias = LoadBlock | StartCodec | LoadCodec | Forward | Backward | Step | ReadBlock | ReadCodec | Close
REQUESTS: Protocol[Request] = Protocol(
    LoadBlock, StartCodec, LoadCodec, Forward, Backward, Step, ReadBlock, ReadCodec, Close
)

# ---- replies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    """The request was carried out."""


@dataclass(frozen=True, slots=True)
class Output(Control, kind="activation"):
    """The output ``codes`` of a forward pass."""


@dataclass(frozen=True, slots=True)
class Gradients(Control, kind="gradient"):
    """Result of a backward pass; ``codes``, if requested, is the gradient of the forward pass's codes.

    Attributes
    ----------
    norm : float
        Norm of all gradients of the server's parameters.
    """

    norm: float


@dataclass(frozen=True, slots=True)
class BlockWeights(Control, kind="weights"):
    """A block's weights, which are the tensors."""


@dataclass(frozen=True, slots=True)
class CodecWeights(Control, kind="codec"):
    """Weights or initial values of the codec, which are the tensors."""


def _check_factor(keep: float) -> None:
    if not math.isfinite(keep):
        raise ValueError(f"gradients cannot be multiplied by {keep}")
