"""What simulated clients remember from round to round, in files that every worker maps.

A file of rows per name, one row per client; rows that were never written cost no disk. What a round changes can be
taken back (:mod:`~farshore.simulations.federated.undo_log`), so that a killed simulation goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from ...engines.federated.client_state import ClientState
from .undo_log import Record, UndoLog, clear, records

_KNOWN = "known"


class SharedClientStates:
    """Memories of ``population`` clients; see :class:`~farshore.engines.federated.client_state.ClientStates`.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    population : int
    lengths : Mapping[str, int]
        Names and lengths of the float32 tensors of each client.
    """

    def __init__(self, folder: Path, population: int, lengths: Mapping[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._journal = UndoLog(folder)
        self._rows = {name: _mapped(folder / name, np.float32, (population, n)) for name, n in lengths.items()}
        self._known = _mapped(folder / _KNOWN, np.uint8, (population,)) if lengths else None

    def get(self, client: int, round_index: int) -> ClientState:
        """The client's tensors, mapped from its file, for round ``round_index`` to change; empty before its first."""
        if self._known is None:
            return {}
        known = bool(self._known[client])
        self._journal.write(round_index, client, [rows[client] for rows in self._rows.values()] if known else None)
        return {name: torch.from_numpy(rows[client]) for name, rows in self._rows.items()} if known else {}

    def put(self, client: int, state: ClientState) -> None:
        """Keep tensors that are not in the file yet."""
        if self._known is None:
            return
        if not self._known[client]:
            for name, rows in self._rows.items():
                rows[client] = state[name].numpy()
            self._known[client] = 1

    def commit(self) -> None:
        """A checkpoint was saved: what came before it need not be taken back any more."""
        self._journal.next_file()

    def restore(self, round_index: int, clients: Collection[int] | None = None) -> None:
        """Restore the states as of the end of round ``round_index``, of all clients or of ``clients`` only."""
        if self._known is None:
            return
        bytes_ = sum(rows.shape[1] * rows.itemsize for rows in self._rows.values())
        for record in records(self.folder, bytes_, round_index):
            if clients is None or record.client in clients:
                self._take_back(record)
        if clients is None:
            clear(self.folder)

    def _take_back(self, record: Record) -> None:
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
