"""Estimates a run's traffic by a rehearsal: the method's own programs run for a few rounds or steps, which are counted.

The programs run as threads. A rehearsed frame stands for those of other rounds or steps, whose headers differ in the
length of the number of the round or step alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.session import Workload
from ..core.traffic_plan import Rehearsal, SupportsRehearsal
from ..core.transfer import Transfer
from ..runs.ledger_reader import NAMES, NUMBERS, pyarrow, schema
from .in_process import InProcessRun

#: Bits per byte of a varint in the header.
_VARINT_BITS = 7


def rehearsal_of(workload: Workload, config: BaseModel) -> tuple[Rehearsal, bool]:
    """Return the rehearsal of a run, and whether it is the whole run because the workload names none."""
    if isinstance(workload, SupportsRehearsal):
        return workload.rehearsal(config), False
    return Rehearsal(config, "step", {}), True


def rehearse(
    workload: Workload, rehearsal: Rehearsal, nodes: Mapping[str, str], seed: int, data: Mapping[str, Path]
) -> Any:
    """Run a rehearsal, and return the ledger that the run which it stands for would write.

    Parameters
    ----------
    nodes : Mapping[str, str]
        Names and roles.
    data : Mapping[str, Path]
        Paths of data sets.

    Returns
    -------
    pyarrow.Table
        The columns of :func:`~farshore.runs.ledger_reader.read_ledger`; times are 0.

    Raises
    ------
    FarshoreError
        A program failed, or pyarrow is not installed.
    """
    rows: list[Transfer] = []
    with tempfile.TemporaryDirectory(prefix="farshore-rehearsal-") as folder:
        InProcessRun(
            workload, rehearsal.config, Path(folder), tuple(nodes), seed, data, nodes, recorder=rows.append
        ).run()
    return multiplied(rows, rehearsal)


def multiplied(rows: Sequence[Transfer], rehearsal: Rehearsal) -> Any:
    """Return the ledger with each rehearsed frame as often as it counts; see :func:`rehearse`."""
    pa = pyarrow()
    indices = _real_indices(rows, rehearsal)
    counts = np.array([len(found) for found in indices], np.int64)
    numbers = {name: np.repeat(np.array([getattr(row, name) for row in rows], np.int64), counts) for name in NUMBERS}
    rehearsed = numbers[rehearsal.unit]
    real = np.concatenate([np.zeros(0, np.int64), *indices])
    numbers["frame_bytes"] += _varint_bytes(real) - _varint_bytes(rehearsed)
    numbers[rehearsal.unit] = real
    arrays = [_texts(pa, [getattr(row, name) for row in rows], counts) for name in NAMES]
    arrays += [pa.array(numbers[name]) for name in NUMBERS]
    return pa.Table.from_batches([pa.record_batch([*arrays, pa.array(np.zeros(len(real)))], schema=schema())])


def _real_indices(rows: Sequence[Transfer], rehearsal: Rehearsal) -> list[NDArray[np.int64]]:
    """Return the rounds or steps for which each frame stands; the handshake, a node's first frames, only for itself."""
    table = {index: np.array(real, np.int64) for index, real in rehearsal.stands_for.items()}
    greeted: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        index, way = getattr(row, rehearsal.unit), (row.node, row.direction)
        once = np.array([index], np.int64)
        found.append(table.get(index, once) if way in greeted else once)
        greeted.add(way)
    return found


def _varint_bytes(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes of numbers in a frame's header, with those of the field's tag; zero is not encoded."""
    lengths = 2 * (values > 0).astype(np.int64)
    for bits in range(_VARINT_BITS, 63, _VARINT_BITS):
        lengths += values >= 1 << bits
    return lengths


def _texts(pa: Any, values: Sequence[str], counts: NDArray[np.int64]) -> Any:
    names = sorted(set(values))
    codes = np.array([names.index(value) for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(np.repeat(codes, counts), names)
