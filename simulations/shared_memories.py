"""What simulated clients remember from round to round, in files that every worker maps.

A file of rows per name, one row per client; rows that were never written cost no disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..algorithms.federated.memories import Memory

_KNOWN = "known"


class SharedMemories:
    """Memories of ``population`` clients; see :class:`~farshore.algorithms.federated.memories.Memories`.

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
        self._rows = {name: _mapped(folder / name, np.float32, (population, n)) for name, n in lengths.items()}
        self._known = _mapped(folder / _KNOWN, np.uint8, (population,)) if lengths else None

    def of(self, client: int) -> Memory:
        """The client's tensors, which are the file itself; empty before its first round."""
        if self._known is None or not self._known[client]:
            return {}
        return {name: torch.from_numpy(rows[client]) for name, rows in self._rows.items()}

    def put(self, client: int, memory: Memory) -> None:
        """Keep tensors that are not in the file yet."""
        if self._known is None:
            return
        if not self._known[client]:
            for name, rows in self._rows.items():
                rows[client] = memory[name].numpy()
            self._known[client] = 1

    def save(self, folder: Path) -> None:
        """Copy all of it to another folder, whole or not at all."""
        if self._known is None:
            return
        for mapped in (*self._rows.values(), self._known):
            mapped.flush()
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(self.folder, unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _mapped(
    path: Path, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
