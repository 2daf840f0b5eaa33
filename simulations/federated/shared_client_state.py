"""States of simulated clients between rounds, in files that all workers map into memory.

There is one file per tensor name with one row per client; rows that were never written take no disk space. Changes can
be undone (see :mod:`~farshore.simulations.federated.undo_log`), so that an interrupted simulation can resume.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from ...engines.federated.client_state import ClientState
from .undo_log import UndoLog, UndoRecord, clear, records

_KNOWN = "known"


class SharedClientStates:
    """States of ``population`` clients; implements :class:`~farshore.engines.federated.client_state.ClientStates`.

    Parameters
    ----------
    folder : Path
        Directory of the files; created if missing.
    population : int
        Number of clients.
    lengths : Mapping[str, int]
        Names and lengths of the float32 tensors of each client; empty if clients have no state.
    """

    def __init__(self, folder: Path, population: int, lengths: Mapping[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._undo_log = UndoLog(folder)
        self._rows = {name: _mapped(folder / name, np.float32, (population, n)) for name, n in lengths.items()}
        self._known = _mapped(folder / _KNOWN, np.uint8, (population,)) if lengths else None

    def get(self, client: int, round_index: int) -> ClientState:
        """Return the client's tensors, mapped from the files, for round ``round_index`` to change in place.

        The result is empty before the client's first round.
        """
        if self._known is None:
            return {}
        known = bool(self._known[client])
        self._undo_log.append(round_index, client, [rows[client] for rows in self._rows.values()] if known else None)
        return {name: torch.from_numpy(rows[client]) for name, rows in self._rows.items()} if known else {}

    def put(self, client: int, state: ClientState) -> None:
        """Write a client's tensors to the files after its first round; later they are changed in place."""
        if self._known is None:
            return
        if not self._known[client]:
            for name, rows in self._rows.items():
                rows[client] = state[name].numpy()
            self._known[client] = 1

    def commit(self) -> None:
        """Note that a checkpoint was saved, so that earlier undo records can be deleted."""
        self._undo_log.rotate()

    def restore(self, round_index: int, clients: Collection[int] | None = None) -> None:
        """Restore the states as of the end of round ``round_index``, of all clients or of ``clients`` only."""
        if self._known is None:
            return
        row_bytes = sum(rows.shape[1] * rows.itemsize for rows in self._rows.values())
        for record in records(self.folder, row_bytes, round_index):
            if clients is None or record.client in clients:
                self._undo(record)
        if clients is None:
            clear(self.folder)

    def _undo(self, record: UndoRecord) -> None:
        assert self._known is not None
        if record.known:
            with record.path.open("rb") as file:
                file.seek(record.offset)
                for rows in self._rows.values():
                    rows[record.client] = np.fromfile(file, rows.dtype, rows.shape[1])
        self._known[record.client] = record.known


def _mapped(
    path: Path, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
