"""What an edge sent, read and checked before the trunk computes anything from it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from .plan import SplitPlan
from .ragged import mask_of, unflatten
from .wire_codec import codes_of


class Inputs:
    """An activation message as the trunk needs it.

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
    def of(cls, message: Message, plan: SplitPlan, *, ragged: bool, max_length: int, where: str) -> Inputs:
        """Read and check a message.

        Parameters
        ----------
        plan : SplitPlan
            Knows the widths and the number of classes.
        ragged : bool
            Whether padding stayed at home.
        max_length : int
            Tokens of the longest sentence there may be.
        where : str
            Names the sender in errors.

        Raises
        ------
        WireError
            A tensor is missing, or shapes or values do not fit each other or the plan.
        RunFailedError
            A code is not finite: the step is refused before anything is computed from it.
        """
        lengths = _integers(message, "lengths", 1, max_length, where)
        labels = _integers(message, "labels", 0, plan.classes - 1, where)
        _check_shapes(message, lengths, labels, plan, ragged, where)
        codes = codes_of(message, "codes")
        sentence = codes_of(message, "sentence") if plan.options.sentence_vector else None
        if not all(torch.isfinite(t).all() for t in (codes, sentence) if t is not None):
            raise RunFailedError(
                f"{where} sent codes that are not finite", hint="lower learning_rate or codec_lr_factor"
            )
        return cls(codes, sentence, lengths, torch.from_numpy(labels), ragged)

    def want_gradients(self) -> None:
        """Let the next backward pass fill :meth:`gradients`."""
        self.codes.requires_grad_()
        if self.sentence is not None:
            self.sentence.requires_grad_()

    def gradients(self, where: str) -> dict[str, NDArray[np.float32]]:
        """∂L/∂codes [M, w] and, where there are some, ∂L/∂sentence vectors [B, q].

        Raises
        ------
        RunFailedError
            One is not finite.
        """
        found = {}
        for name, tensor in (("codes", self.codes), ("sentence", self.sentence)):
            if tensor is None or tensor.grad is None:
                continue
            if not torch.isfinite(tensor.grad).all():
                raise RunFailedError(
                    f"the gradients for {where} are not finite", hint="lower learning_rate or codec_lr_factor"
                )
            found[name] = tensor.grad.numpy()
        return found

    def padded(self) -> torch.Tensor:
        """Codes as ``[B, T, w]``."""
        if self.ragged:
            return unflatten(self.codes, self.mask)
        return self.codes.view(*self.mask.shape, -1)


def _integers(message: Message, name: str, least: int, most: int, where: str) -> Array:
    """The one-axis integer tensor ``name`` as int64, all of it from ``least`` to ``most``."""
    array = message.tensors[name].array if name in message.tensors else None
    if array is None or array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise WireError(f"{where} sent no list of whole numbers called '{name}'")
    values = array.astype(np.int64)
    if int(values.min()) < least or int(values.max()) > most:
        raise WireError(f"{where} sent {name} from {values.min()} to {values.max()}, not from {least} to {most}")
    return values


def _check_shapes(message: Message, lengths: Array, labels: Array, plan: SplitPlan, ragged: bool, where: str) -> None:
    shapes = {name: tensor.array.shape for name, tensor in message.tensors.items()}
    if len(labels) != len(lengths):
        raise WireError(f"{where} sent {len(labels)} labels for {len(lengths)} sentences")
    codes = shapes.get("codes", ())
    if len(codes) != 2 or codes[1] != plan.width:
        raise WireError(f"{where} sent codes of shape {codes}, not (tokens, {plan.width})")
    tokens, most = int(lengths.sum()), int(lengths.max())
    fits = codes[0] == tokens if ragged else codes[0] % len(lengths) == 0 and codes[0] >= most * len(lengths)
    if not fits:
        raise WireError(f"{where} sent {codes[0]} codes for {len(lengths)} sentences of {tokens} tokens")
    q = plan.options.sentence_vector
    if shapes.get("sentence") != ((len(lengths), q) if q else None):
        raise WireError(
            f"{where} sent sentence vectors of shape {shapes.get('sentence')}, {q} numbers each were agreed"
        )


def expect(message: Message, kind: str, node: str) -> Message:
    """Return ``message`` if it is of ``kind``; a :class:`WireError` names the edge otherwise."""
    if message.kind != kind:
        raise WireError(f"edge '{node}' sent '{message.kind}' where '{kind}' was due")
    return message
