"""Model states as safetensors files for other programs: named tensors, and metadata in the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..core.errors import NotFoundError, StorageError
from . import files


def save_state(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a state atomically.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    tensors : Mapping[str, array]
        As in a module's ``state_dict``.
    metadata : Mapping[str, str]
        Written to the header's ``__metadata__``.

    Raises
    ------
    StorageError
        Writing fails; the previous file at ``path`` is kept.
    """
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(arrays, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise StorageError(f"cannot write the state file {path}: {error}", hint="check the disk") from error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.storage_error(f"cannot create the directory {path.parent}", error) from error
    files.replace(path, write)


def load_state(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Load the tensors and the metadata of a state file.

    Raises
    ------
    NotFoundError
        The file does not exist.
    StorageError
        The file is damaged, or not a safetensors file.
    """
    return _read(path, with_tensors=True)


def load_metadata(path: Path) -> dict[str, str]:
    """Load the metadata of a state file without its tensors; errors as for :func:`load_state`."""
    return _read(path, with_tensors=False)[1]


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    if not path.is_file():
        raise NotFoundError(f"state file {path} does not exist")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys()) if with_tensors else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise StorageError(f"the state file {path} is damaged: {error}", hint="use another state file") from error
