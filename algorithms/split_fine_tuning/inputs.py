"""What an edge sent, read and checked before the trunk computes anything from it."""

from __future__ import annotations

import numpy as np
import torch

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from .codes import codes_of
from .ragged import mask_of, unflatten


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
    def of(cls, message: Message, ragged: bool, width: int, where: str) -> Inputs:
        """Read and check a message.

        Raises
        ------
        WireError
            Shapes do not fit each other.
        RunFailedError
            A code is not finite: the step is refused before anything is computed from it.
        """
        codes = codes_of(message, "codes")
        lengths = message.array("lengths").astype(np.int64)
        labels = torch.from_numpy(message.array("labels").astype(np.int64))
        sentence = codes_of(message, "sentence").requires_grad_() if "sentence" in message.tensors else None
        if codes.dim() != 2 or codes.shape[1] != width or len(labels) != len(lengths) or not len(lengths):
            raise WireError(f"{where} sent codes of shape {tuple(codes.shape)}, not (tokens, {width})")
        inputs = cls(codes, sentence, lengths, labels, ragged)
        if int(inputs.groups.sum()) != len(codes):
            raise WireError(f"{where} sent {len(codes)} codes for {int(inputs.groups.sum())} tokens")
        if not all(torch.isfinite(t).all() for t in (codes, sentence) if t is not None):
            raise RunFailedError(
                f"{where} sent codes that are not finite", cure="lower learning_rate or codec_lr_factor"
            )
        return inputs

    def padded(self) -> torch.Tensor:
        """Codes as ``[B, T, w]``."""
        if self.ragged:
            return unflatten(self.codes, self.mask)
        return self.codes.view(*self.mask.shape, -1)


def expect(message: Message, kind: str, node: str) -> Message:
    """Return ``message`` if it is of ``kind``; a :class:`WireError` names the edge otherwise."""
    if message.kind != kind:
        raise WireError(f"edge '{node}' sent '{message.kind}' where '{kind}' was due")
    return message
