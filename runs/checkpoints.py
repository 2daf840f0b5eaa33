"""Checkpoints of one side of a run: one safetensors file per step, written atomically; the newest ones are kept."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
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
    """Checkpoints in a directory, of which the ``keep`` newest are kept.

    A checkpoint is a file ``step-000000000120.safetensors``: the tensors, and in the header's ``__metadata__`` the
    caller's JSON (``meta``), the ``step`` and a ``checksum`` (XXH3-128 of metadata, names, dtypes, shapes and values).
    Only one process may write to a directory.

    Checkpoints of steps after the one that a run continues from are not deleted: they are moved to the folder
    ``superseded`` and stay there until a step that is not older than the newest of them is saved.

    Parameters
    ----------
    path : Path
        Created when the first checkpoint is saved.
    keep : int
        At least 1. With two, both sides of a run find a common step even if one was killed while saving.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self._path = Path(path)
        self._keep = keep
        self._verified: dict[Path, tuple[int, int, int]] = {}  # files with a correct checksum, and their identity

    def save(self, step: int, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically, then remove older ones beyond ``keep``.

        Checkpoints of later steps are set aside: the run was resumed from before them.

        Parameters
        ----------
        step : int
            Not negative.
        tensors : Mapping[str, array]
            Any shape; NumPy's numeric dtypes and bool.
        meta : Mapping[str, Any]
            JSON-serializable.

        Raises
        ------
        StorageError
            Writing fails; older checkpoints are kept.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        # The library writes the buffer as is, so transposed views must be made contiguous first.
        arrays = {name: _contiguous(name, array) for name, array in tensors.items()}
        text = json.dumps(dict(meta))
        header = {"meta": text, "step": str(step), "checksum": _checksum(text, arrays)}

        def write(temporary: Path) -> None:
            try:
                save_file(arrays, temporary, metadata=header)
            except SafetensorError as error:
                raise _translated(f"cannot write the checkpoint of step {step} in {self._path}", error) from error

        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot create the directory {self._path}", error) from error
        files.replace(self._file(step), write)
        with contextlib.suppress(OSError):  # removed already; `steps` reads it again
            self._verified[self._file(step)] = _identity(self._file(step))
        self._prune(step)

    def load(self, step: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Load the tensors and the metadata of ``step``.

        Raises
        ------
        StorageError
            The checkpoint is missing or damaged.
        """
        path = self._file(step)
        if not path.is_file():
            known = ", ".join(map(str, self.steps())) or "none"
            raise StorageError(f"no checkpoint of step {step} in {self._path}; available steps: {known}")
        return _read(path)

    def steps(self) -> list[int]:
        """Return the steps that can be loaded, ascending, without damaged checkpoints.

        Verifies the checksum of every file once. Engines resume from the highest step that all sides have, so damage
        that only :meth:`load` found would fail the run although an older checkpoint is valid.
        """
        return [step for step, path in self._found() if self._is_valid(path)]

    @property
    def superseded(self) -> Path:
        """Folder of the checkpoints that were set aside; absent if there are none."""
        return self._path / "superseded"

    def set_aside(self, after: int | None) -> list[int]:
        """Move the checkpoints of steps after ``after`` (all for None) to :attr:`superseded`; returns their steps.

        Raises
        ------
        StorageError
            A file cannot be moved.
        """
        later = [(step, path) for step, path in self._found() if after is None or step > after]
        try:
            for _, path in later:
                self.superseded.mkdir(exist_ok=True)
                path.replace(self.superseded / path.name)
        except OSError as error:
            raise files.storage_error(f"cannot move the checkpoints in {self._path}", error) from error
        return [step for step, _ in later]

    def _is_valid(self, path: Path) -> bool:
        try:
            identity = _identity(path)
            if self._verified.get(path) != identity:
                _read(path)
                self._verified[path] = identity
        except (StorageError, OSError) as error:
            _log.warning("%s", error)
            return False
        return True

    def _file(self, step: int) -> Path:
        return self._path / f"step-{step:012d}.safetensors"

    def _found(self, folder: Path | None = None) -> list[tuple[int, Path]]:
        folder = folder or self._path
        try:
            names = list(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.storage_error(f"cannot read the directory {folder}", error) from error
        return sorted((int(match[1]), path) for path in names if (match := _NAME.fullmatch(path.name)))

    def _prune(self, newest: int) -> None:
        try:
            self.set_aside(newest)
        except StorageError as error:  # the new checkpoint is complete, so the run can go on
            _log.warning("%s", error)
        if all(step <= newest for step, _ in self._found(self.superseded)):
            shutil.rmtree(self.superseded, ignore_errors=True)
        kept = [step for step in self.steps() if step <= newest][-self._keep :]
        obsolete = [path for step, path in self._found() if step not in kept and step <= newest]
        # Left by a process that was killed while saving; the safetensors library writes to ".tmp…" first.
        obsolete += [*self._path.glob(".step-*.tmp"), *self._path.glob(".tmp*")]
        for path in obsolete:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the new checkpoint is complete, so the run can go on
                _log.warning("cannot remove the old checkpoint %s: %s", path, error)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – not a mapping
        meta = json.loads(header["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StorageError(f"the checkpoint {path} is damaged: {error}", hint=_HINT) from error
    if header.get("checksum") != _checksum(header["meta"], tensors) or not isinstance(meta, dict):
        raise StorageError(f"the checkpoint {path} is damaged: its checksum is wrong", hint=_HINT)
    return tensors, meta


def _identity(path: Path) -> tuple[int, int, int]:
    """Return inode, size and modification time, which change when the file is rewritten."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _contiguous(name: str, array: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(array, order="C")
    if array.dtype.kind not in "biufc":
        raise StorageError(
            f"cannot checkpoint '{name}': its dtype is {array.dtype}",
            hint="checkpoints hold numeric and bool arrays only",
        )
    return array


def _checksum(meta: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_128(meta.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype.name}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return str(digest.hexdigest())


def _translated(what: str, error: SafetensorError) -> Exception:
    """Turn the library's error into the system error whose number it has in its text, as in "(os error 28)"."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number:
        return OSError(int(number[1]), str(error))
    return StorageError(f"{what}: {error}", hint="tensors must be numeric or bool arrays")
