"""What a program expects to receive: checked against the header of a message before anything is decoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of a tensor.

    Attributes
    ----------
    dtype : str
        Name on the wire: ``f32``, ``bf16``, ``i64`` ….
    shape : tuple
        Sizes of the axes; None = any size.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def matches(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor has this dtype and shape."""
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(want is None or want == size for want, size in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What messages of one kind may contain; None = not restricted.

    Attributes
    ----------
    dense_bytes : int, optional
        Most bytes of the decoded tensors. It replaces the general bound on the expansion of encoded tensors.
    encodings : collection of str, optional
        Names of the permitted encodings, such as ``raw`` or ``topk|int8``.
    tensors : Mapping, optional
        The tensors by name; others are refused, and a message may leave some out.
    """

    dense_bytes: int | None = None
    encodings: Collection[str] | None = None
    tensors: Mapping[str, TensorSpec] | None = None
