"""Limits on the size of a frame, checked before memory is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds for one frame. The sender checks them too, so that the error occurs where the message is created.

    Attributes
    ----------
    header_bytes, payload_bytes : int
        Size of the serialized header, and of the payload.
    dense_bytes : int
        Total size of the decoded tensors of a frame. It prevents a small frame from expanding without bound: the
        working memory of decoders is at most a small multiple of it.
    tensors, fields : int
        Number of entries in the tensor table, and of scalar fields.
    rank : int
        Number of dimensions of a tensor.
    name_bytes : int
        Length of the name of a kind, tensor, field, encoding or key, in UTF-8 bytes.
    """

    header_bytes: int = 1 << 20
    payload_bytes: int = 1 << 30
    dense_bytes: int = 1 << 31
    tensors: int = 4096
    fields: int = 1024
    rank: int = 8
    name_bytes: int = 256


DEFAULT = Limits()
