"""Reads the pickles of the Planetoid files without executing what they name.

The files are pickles of Python 2 that hold NumPy arrays, SciPy matrices in CSR form and a dictionary of lists. Every
name in them that is not one of these few is refused, and those few are replaced by the stand-ins of this module:
neither NumPy nor SciPy gets to see the file's content before it is checked.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError

#: Largest file that is read, in bytes; those of the published data sets have less than 10 MB.
MAX_BYTES = 1 << 29
_DTYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "b1"}
_MAX_AXES = 4


class _DType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str = "", align: object = 0, copy: object = 0) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """Return the type; raises ValueError if it is not one of numbers."""
        if not isinstance(self.code, str) or self.code not in _DTYPES or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of the type {str(self.code)[:20]!r}")
        return np.dtype(self.order.replace("|", "<") + self.code)


class _Array:
    """Stands for ``numpy.ndarray``."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numpy(self) -> NDArray[Any]:
        """Return the array; raises ValueError if its parts do not fit."""
        if len(self.state) != 5:
            raise ValueError("an array without content")
        _, shape, kind, fortran, raw = self.state
        sizes_are_valid = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not sizes_are_valid or len(shape) > _MAX_AXES or not isinstance(kind, _DType):
            raise ValueError("an array with an invalid shape or type")
        dtype = kind.numpy()
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of the shape {shape} with content of another size")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


class _Csr:
    """Stands for ``scipy.sparse.csr_matrix``."""

    state: Mapping[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Dict(dict[Any, Any]):
    """Stands for ``collections.defaultdict``."""

    def __init__(self, factory: object = None) -> None:
        super().__init__()


class _ListType:
    """Stands for the type ``list``, as the argument of a ``defaultdict``."""


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    """Stands for ``_codecs.encode``, with which Python 3 writes bytes in old protocols."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown form")
    return text.encode("latin1")


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "defaultdict"): _Dict,
    ("__builtin__", "list"): _ListType,
    ("builtins", "list"): _ListType,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; names with parts, such as ``a.b``, are none of those allowed."""
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}"[:120])
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse a reference to something outside the file."""
        raise pickle.UnpicklingError("it refers to something outside the file")


def read_pickle(path: Path) -> Any:
    """Read a file of numbers.

    Returns
    -------
    ndarray, or tuple (data, indices, indptr, shape) of a CSR matrix, or dict

    Raises
    ------
    DataError
        The file is missing, truncated or damaged, or names anything but arrays, CSR matrices and lists.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES >> 20} MiB", hint="check that it is the published file")
        with path.open("rb") as file:
            found = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="copy the file there") from error
    except pickle.UnpicklingError as error:
        if str(error).startswith("it "):
            raise DataError(
                f"{path} is refused: {error}, which a file of numbers does not need",
                hint="use the published file; this one may be malicious",
            ) from error
        raise _damaged(path, error) from error
    except (EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise _damaged(path, error) from error
    try:
        return _plain(found)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has {error}", hint="copy the file again") from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is truncated or damaged: {error or type(error).__name__}", hint="copy the file again")


def _plain(found: Any) -> Any:
    """Return what the stand-ins hold; raises ValueError or KeyError if they hold something else."""
    if isinstance(found, _Array):
        return found.numpy()
    if isinstance(found, _Csr):
        parts = [found.state.get(name) for name in ("data", "indices", "indptr")]
        if not all(isinstance(part, _Array) for part in parts):
            raise ValueError("a matrix without its arrays")
        shape = found.state.get("_shape", found.state.get("shape"))
        if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int for n in shape):
            raise ValueError("a matrix without its shape")
        return (*(part.numpy() for part in parts if part is not None), shape)
    if isinstance(found, dict):
        return dict(found)
    raise ValueError(f"a {type(found).__name__} instead of an array, a matrix or a dictionary")
