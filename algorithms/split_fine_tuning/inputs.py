"""Parsing and validation of an edge's activation messages, before the trunk computes anything."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from .plan import SplitPlan
from .ragged import mask_of, unflatten
from .wire_codec import codes_of


class TrunkInputs:
    """The checked contents of an activation or evaluation message.

    Attributes
    ----------
    codes : Tensor [M, w]
    sentence : Tensor [B, q] or None
    mask : Tensor [B, T]
    labels : Tensor [B]
    groups : int64 array [B]
        Rows of ``codes`` that belong to each sentence.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        sentence: torch.Tensor | None,
        lengths: Array,
        labels: torch.Tensor,
        ragged: bool,
    ) -> None:
        self.codes, self.sentence, self.labels, self.ragged = codes, sentence, labels, ragged
        width = None if ragged else len(codes) // max(len(lengths), 1)
        self.mask = mask_of(torch.from_numpy(lengths), width)
        self.groups: Array = lengths if ragged else np.full(len(lengths), self.mask.shape[1])

    @classmethod
    def from_message(
        cls, message: Message, plan: SplitPlan, *, ragged: bool, max_length: int, sender: str
    ) -> TrunkInputs:
        """Read and check a message.

        Parameters
        ----------
        plan : SplitPlan
            Gives the widths and the number of classes.
        ragged : bool
            Whether padding was left out.
        max_length : int
            Maximum number of tokens of a sentence.
        sender : str
            Names the sender in errors.

        Raises
        ------
        WireError
            A tensor is missing, or shapes or values do not match each other or the plan.
        RunFailedError
            A code is not finite.
        """
        lengths = _integers(message, "lengths", 1, max_length, sender)
        labels = _integers(message, "labels", 0, plan.classes - 1, sender)
        _check_shapes(message, lengths, labels, plan, ragged, sender)
        codes = codes_of(message, "codes")
        sentence = codes_of(message, "sentence") if plan.options.sentence_vector else None
        if not all(torch.isfinite(t).all() for t in (codes, sentence) if t is not None):
            raise RunFailedError(
                f"{sender} sent codes that are not finite", hint="lower learning_rate or codec_lr_factor"
            )
        return cls(codes, sentence, lengths, torch.from_numpy(labels), ragged)

    def require_gradients(self) -> None:
        """Make the next backward pass compute :meth:`gradients`."""
        self.codes.requires_grad_()
        if self.sentence is not None:
            self.sentence.requires_grad_()

    def gradients(self, sender: str) -> dict[str, NDArray[np.float32]]:
        """Return ∂L/∂codes [M, w] and, if there are sentence vectors, their gradients [B, q].

        Raises
        ------
        RunFailedError
            A gradient is not finite.
        """
        found = {}
        for name, tensor in (("codes", self.codes), ("sentence", self.sentence)):
            if tensor is None or tensor.grad is None:
                continue
            if not torch.isfinite(tensor.grad).all():
                raise RunFailedError(
                    f"the gradients for {sender} are not finite", hint="lower learning_rate or codec_lr_factor"
                )
            found[name] = tensor.grad.numpy()
        return found

    def padded(self) -> torch.Tensor:
        """Return the codes as [B, T, w]."""
        if self.ragged:
            return unflatten(self.codes, self.mask)
        return self.codes.view(*self.mask.shape, -1)


def _integers(message: Message, name: str, least: int, most: int, sender: str) -> Array:
    """Read the integer vector ``name`` as int64; all values must be from ``least`` to ``most``."""
    array = message.tensors[name].array if name in message.tensors else None
    if array is None or array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise WireError(f"{sender} sent no integer vector '{name}'")
    values = array.astype(np.int64)
    if int(values.min()) < least or int(values.max()) > most:
        raise WireError(f"{sender} sent {name} from {values.min()} to {values.max()}, expected from {least} to {most}")
    return values


def _check_shapes(message: Message, lengths: Array, labels: Array, plan: SplitPlan, ragged: bool, sender: str) -> None:
    shapes = {name: tensor.array.shape for name, tensor in message.tensors.items()}
    if len(labels) != len(lengths):
        raise WireError(f"{sender} sent {len(labels)} labels for {len(lengths)} sentences")
    codes = shapes.get("codes", ())
    if len(codes) != 2 or codes[1] != plan.width:
        raise WireError(f"{sender} sent codes of shape {codes}, expected (tokens, {plan.width})")
    tokens, most = int(lengths.sum()), int(lengths.max())
    fits = codes[0] == tokens if ragged else codes[0] % len(lengths) == 0 and codes[0] >= most * len(lengths)
    if not fits:
        raise WireError(f"{sender} sent {codes[0]} codes for {len(lengths)} sentences of {tokens} tokens")
    q = plan.options.sentence_vector
    if shapes.get("sentence") != ((len(lengths), q) if q else None):
        raise WireError(
            f"{sender} sent sentence vectors of shape {shapes.get('sentence')}, expected {q} numbers per sentence"
        )


def expect(message: Message, kind: str, node: str) -> Message:
    """Return ``message`` if it is of ``kind``; otherwise raise a :class:`WireError` that names the edge."""
    if message.kind != kind:
        raise WireError(f"expected '{kind}' from edge '{node}', got '{message.kind}'")
    return message
