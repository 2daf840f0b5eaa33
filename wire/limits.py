"""What a receiver is willing to take: every bound is checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one frame; a sender is held to the same ones, so that it hears of a breach first.

    Attributes
    ----------
    header_bytes, payload_bytes : int
        Most bytes of the serialized header, and of the payload.
    dense_bytes : int
        Most bytes that all tensors of a frame have together once decoded. This is what stops a small
        frame from growing large: a decoder's working memory is a small multiple of it at most.
    tensors, fields : int
        Most entries of the tensor table, and scalar fields.
    rank : int
        Most dimensions of a tensor.
    name_bytes : int
        Longest name of a kind, tensor, field or encoding, in UTF-8 bytes.
    """

    header_bytes: int = 1 << 20
    payload_bytes: int = 1 << 30
    dense_bytes: int = 1 << 31
    tensors: int = 4096
    fields: int = 1024
    rank: int = 8
    name_bytes: int = 256


DEFAULT = Limits()
