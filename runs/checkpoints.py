"""Checkpoints of one side of a run: one safetensors file per step, whole or not there; the newest are kept."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..core.errors import StorageError
from . import files

_log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{12,})\.safetensors")
_HINT = "resume from another step, or delete that file"


class CheckpointStore:
    """Checkpoints in a directory, the ``keep`` newest of them.

    A checkpoint is ``step-000000000120.safetensors``: the tensors, and in the header's ``__metadata__`` the caller's
    JSON (``meta``), the ``step`` and a ``checksum`` (XXH3-128 over meta, names, dtypes, shapes and values). One
    directory has one writer.

    Parameters
    ----------
    path : Path
        Made when the first checkpoint is saved.
    keep : int
        At least 1. Two let both sides of a run find a common step when one died while saving.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self._path = Path(path)
        self._keep = keep
        self._sound: dict[Path, tuple[int, int, int]] = {}  # files whose checksum was right, as they were then

    def save(self, step: int, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint in one step, then remove those that are not to be kept.

        A checkpoint of a later step goes too: the run was taken back behind it.

        Parameters
        ----------
        step : int
            Not negative.
        tensors : Mapping[str, array]
            Any shape; dtypes of NumPy's own numbers and bool.
        meta : Mapping[str, Any]
            JSON-able.

        Raises
        ------
        StorageError
            It cannot be written; older checkpoints are still there.
        """
        if step < 0:
            raise ValueError(f"a step is not negative: {step}")
        # The library writes memory as it lies: transposed views must be laid out first.
        arrays = {name: _laid_out(name, array) for name, array in tensors.items()}
        text = json.dumps(dict(meta))
        head = {"meta": text, "step": str(step), "checksum": _checksum(text, arrays)}

        def write(temporary: Path) -> None:
            try:
                save_file(arrays, temporary, metadata=head)
            except SafetensorError as error:
                raise _from_library(f"cannot write the checkpoint of step {step} in {self._path}", error) from error

        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot make the directory {self._path}", error) from error
        files.replace(self._file(step), write)
        with contextlib.suppress(OSError):  # gone already: `steps` will find out
            self._sound[self._file(step)] = _identity(self._file(step))
        self._prune(step)

    def load(self, step: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The tensors and the meta data of ``step``.

        Raises
        ------
        StorageError
            It is missing or damaged.
        """
        path = self._file(step)
        if not path.is_file():
            known = ", ".join(map(str, self.steps())) or "none"
            raise StorageError(f"no checkpoint of step {step} in {self._path}; there are: {known}")
        return _read(path)

    def steps(self) -> list[int]:
        """Steps that can be loaded, ascending; damaged ones are left out.

        Reads every file whole, once: an engine resumes from the highest step that all sides name, and a wrong value
        that only showed in :meth:`load` would end the run although an older checkpoint is sound.
        """
        return [step for step, path in self._found() if self._is_sound(path)]

    def _is_sound(self, path: Path) -> bool:
        try:
            identity = _identity(path)
            if self._sound.get(path) != identity:
                _read(path)
                self._sound[path] = identity
        except (StorageError, OSError) as error:
            _log.warning("%s", error)
            return False
        return True

    def _file(self, step: int) -> Path:
        return self._path / f"step-{step:012d}.safetensors"

    def _found(self) -> list[tuple[int, Path]]:
        try:
            names = list(self._path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.storage_error(f"cannot read the directory {self._path}", error) from error
        return sorted((int(match[1]), path) for path in names if (match := _NAME.fullmatch(path.name)))

    def _prune(self, newest: int) -> None:
        kept = [step for step in self.steps() if step <= newest][-self._keep :]
        unwanted = [path for step, path in self._found() if step not in kept]
        # A process that was killed while saving; ".tmp…" is what the safetensors library writes to first.
        unwanted += [*self._path.glob(".step-*.tmp"), *self._path.glob(".tmp*")]
        for path in unwanted:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the new checkpoint is safe: no reason to end the run
                _log.warning("cannot remove the old checkpoint %s: %s", path, error)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – no mapping
        meta = json.loads(head["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StorageError(f"the checkpoint {path} is damaged: {error}", hint=_HINT) from error
    if head.get("checksum") != _checksum(head["meta"], tensors) or not isinstance(meta, dict):
        raise StorageError(f"the checkpoint {path} is damaged: its checksum is wrong", hint=_HINT)
    return tensors, meta


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _laid_out(name: str, array: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(array, order="C")
    if array.dtype.kind not in "biufc":
        raise StorageError(
            f"cannot checkpoint '{name}': its dtype is {array.dtype}",
            hint="a checkpoint holds numbers and bools only",
        )
    return array


def _checksum(meta: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_128(meta.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype.name}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return str(digest.hexdigest())


def _from_library(what: str, error: SafetensorError) -> Exception:
    """The library wraps the system's errors in text; "(os error 28)" is how Rust ends them."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number:
        return OSError(int(number[1]), str(error))
    return StorageError(f"{what}: {error}", hint="a tensor must be an array of numbers or bools")
