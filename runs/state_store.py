"""What one side of a run keeps over restarts: checkpoints, and streams whose lengths the checkpoints remember."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.message import Array
from . import files
from .checkpoints import CheckpointStore
from .streams import RecordStream, StreamStore

#: Key of a checkpoint's metadata that holds the lengths of the streams.
_LENGTHS = "__streams__"


class StateStore:
    """Checkpoints and streams of one program.

    Parameters
    ----------
    checkpoints : CheckpointStore
    streams : Path
        Folder of the streams.
    """

    def __init__(self, checkpoints: CheckpointStore, streams: Path) -> None:
        self._checkpoints = checkpoints
        self._folder = streams
        self._streams = StreamStore(streams)

    def steps(self) -> list[int]:
        """Steps that can be loaded, ascending."""
        return self._checkpoints.steps()

    def save(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; the records appended so far belong to it. Errors as :meth:`.CheckpointStore.save`."""
        lengths = self._streams.lengths()
        self._checkpoints.save(step, tensors, {**meta, _LENGTHS: lengths} if lengths else meta)

    def load(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """The tensors and the metadata of a checkpoint. Errors as :meth:`.CheckpointStore.load`."""
        tensors, meta = self._checkpoints.load(step)
        meta.pop(_LENGTHS, None)
        return tensors, meta

    @property
    def started_over(self) -> bool:
        """Whether checkpoints of an earlier attempt are set aside, which this one has not passed yet."""
        return self._checkpoints.superseded.is_dir()

    def begin(self, step: int | None) -> None:
        """Continue from a checkpoint, or from nothing for None: cut the streams back to what they were then.

        Later checkpoints are set aside, see :class:`.CheckpointStore`; with None, the streams are set aside with them.

        Raises
        ------
        StorageError
            The checkpoint is missing or damaged, or a stream has lost records.
        """
        lengths = {} if step is None else self._checkpoints.load(step)[1].get(_LENGTHS, {})
        if self._checkpoints.set_aside(step) and step is None:
            self._set_streams_aside()
        self._streams.truncate(lengths)

    def _set_streams_aside(self) -> None:
        target = self._checkpoints.superseded / "streams"
        if not self._folder.is_dir() or target.exists():
            return
        self._streams.close()
        try:
            self._folder.rename(target)
        except OSError as error:
            raise files.storage_error(f"cannot move {self._folder}", error) from error

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        """Append a record to a stream; returns its index. Errors as :meth:`.RecordStream.append`."""
        return self._streams.stream(stream).append(tensors)

    def stream(self, name: str) -> RecordStream:
        """A stream, for reading."""
        return self._streams.stream(name)

    def close(self) -> None:
        """Close all files."""
        self._streams.close()
