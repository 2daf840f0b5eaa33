"""A model's state as a safetensors file that other programs read: tensors by name, and a few words about them."""

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


def save_state(path: Path, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
    """Write a state; the file is whole or not there.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    tensors : Mapping[str, array]
        As in a module's ``state_dict``.
    about : Mapping[str, str]
        Goes into the header's ``__metadata__``.

    Raises
    ------
    StorageError
        It cannot be written; what was at ``path`` is still there.
    """
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(arrays, temporary, metadata=dict(about))
        except SafetensorError as error:
            raise StorageError(f"cannot write the state {path}: {error}", hint="check that disk") from error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.storage_error(f"cannot make the directory {path.parent}", error) from error
    files.replace(path, write)


def load_state(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a state file, and what is said about them.

    Raises
    ------
    NotFoundError
        There is no such file.
    StorageError
        It is damaged, or no safetensors file.
    """
    return _read(path, whole=True)


def about_state(path: Path) -> dict[str, str]:
    """What a state file says about itself, without reading its tensors; same errors as :func:`load_state`."""
    return _read(path, whole=False)[1]


def _read(path: Path, *, whole: bool) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    if not path.is_file():
        raise NotFoundError(f"there is no state {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys()) if whole else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise StorageError(f"the state {path} is damaged: {error}", hint="export another state") from error
