"""Parsing and validation of an edge's activation messages, before the trunk computes anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core.errors import RunFailedError, WireError
from ...core.message import Array, Message
from ...engines.split.received_codes import ReceivedCodes
from ...engines.split.token_rows import TokenRows
from ...engines.split.wire_codec import Floats, floats_of, read_floats
from .plan import SplitPlan
from .wire_codec import codes_of

_NAMES = {"codes", "mean", "sentence", "lengths", "labels"}


@dataclass(frozen=True, slots=True)
class TrunkInputs:
    """The checked contents of an activation or evaluation message, on the trunk's device.

    Attributes
    ----------
    tokens : ReceivedCodes
        Codes [M, w] and their layout.
    sentence : Tensor [B, q] or None
    labels : Tensor [B]
    """

    tokens: ReceivedCodes
    sentence: torch.Tensor | None
    labels: torch.Tensor

    @classmethod
    def from_message(
        cls, message: Message, plan: SplitPlan, *, ragged: bool, max_length: int, device: torch.device, sender: str
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
        device : torch.device
        sender : str
            Names the sender in errors.

        Raises
        ------
        WireError
            A tensor is missing or unknown, or shapes or values do not match each other or the plan.
        RunFailedError
            A code is not finite.
        """
        lengths = _integers(message, "lengths", 1, max_length, sender)
        labels = _integers(message, "labels", 0, plan.classes - 1, sender)
        _check_shapes(message, lengths, labels, plan, ragged, sender)
        shape = message.array("codes").shape
        rows = TokenRows.of_lengths(lengths, ragged, None if ragged else shape[0] // len(lengths))
        codes, sentence = codes_of(message, shape, sender), None
        if q := plan.options.sentence_vector:
            sentence = read_floats(message, "sentence", (len(lengths), q), sender).to(device)
        found = cls(ReceivedCodes(rows, codes.to(device)), sentence, torch.from_numpy(labels).to(device))
        if not all(torch.isfinite(tensor).all() for tensor in found._leaves().values()):
            raise RunFailedError(
                f"{sender} sent codes that are not finite", hint="lower learning_rate or codec_lr_factor"
            )
        return found

    def require_gradients(self) -> None:
        """Make the next backward pass compute :meth:`gradients`."""
        for tensor in self._leaves().values():
            tensor.requires_grad_()

    def gradients(self, sender: str) -> dict[str, Floats]:
        """Return ∂L/∂codes [M, w] and, if there are sentence vectors, their gradients [B, q].

        Raises
        ------
        RunFailedError
            A gradient is not finite.
        """
        found = {}
        for name, tensor in self._leaves().items():
            if tensor.grad is None:
                continue
            if not torch.isfinite(tensor.grad).all():
                raise RunFailedError(
                    f"the gradients for {sender} are not finite", hint="lower learning_rate or codec_lr_factor"
                )
            found[name] = floats_of(tensor.grad)
        return found

    def _leaves(self) -> dict[str, torch.Tensor]:
        leaves = {"codes": self.tokens.codes}
        return leaves if self.sentence is None else {**leaves, "sentence": self.sentence}


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
    if unknown := sorted(set(shapes) - _NAMES):
        raise WireError(f"{sender} sent the unknown tensor '{unknown[0][:80]}'")
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
