"""Reads citation graphs from the files of the Planetoid repository: ``ind.NAME.{allx,ally,tx,ty,graph,test.index}``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import DataError
from .graph_set import Graph, Ints, undirected
from .restricted_pickle import read_pickle

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SUBFOLDERS = (".", "raw")
_AGAIN = "copy the six files again"


def locate_planetoid(folder: Path) -> Path | None:
    """Return the ``ind.NAME.allx`` file at or below ``folder``, or None."""
    for candidate in (folder / name for name in _SUBFOLDERS):
        if candidate.is_dir() and (found := sorted(candidate.glob("ind.*.allx"))):
            return found[0]
    return None


def read_planetoid(allx: Path, name: str) -> Graph:
    """Read a graph.

    Nodes of the test range that have no row are added with zero attributes and class 0, as is usual for CiteSeer; they
    are in :attr:`Graph.unlabeled`.

    Parameters
    ----------
    allx : Path
        The file with the attributes of the nodes outside the test range.
    name : str
        Of the graph.

    Raises
    ------
    DataError
        A file is missing, damaged or does not fit the others; the message names it.
    """
    from scipy.sparse import csr_array, vstack

    stem = allx.name.removesuffix("allx")
    folder = allx.parent
    first = _matrix(allx)
    tests, test_rows = _test_index(folder / f"{stem}test.index"), _matrix(folder / f"{stem}tx")
    ally, ty = (_one_hot(folder / f"{stem}{part}") for part in ("ally", "ty"))
    for path, rows, expected in (
        (folder / f"{stem}ally", len(ally), first.shape[0]),
        (folder / f"{stem}tx", test_rows.shape[0], len(tests)),
        (folder / f"{stem}ty", len(ty), len(tests)),
    ):
        if rows != expected:
            raise DataError(f"{path} has {rows} rows, expected {expected}", hint=_AGAIN)
    if tests.min() < first.shape[0]:
        raise DataError(
            f"{folder / f'{stem}test.index'} names node {tests.min()}, which is in {allx.name}", hint=_AGAIN
        )
    if test_rows.shape[1] != first.shape[1] or ally.shape[1] != ty.shape[1]:
        raise DataError(f"{folder / f'{stem}tx'} and {allx.name} have different numbers of columns", hint=_AGAIN)
    count = int(tests.max()) + 1
    rows = np.full(count, -1)
    rows[: first.shape[0]] = np.arange(first.shape[0])
    rows[tests] = first.shape[0] + np.arange(len(tests))
    unlabeled = np.flatnonzero(rows < 0)
    empty = first.shape[0] + len(tests)
    zero_row = csr_array((1, first.shape[1]), dtype=np.float32)
    features = csr_array(vstack([first, test_rows, zero_row], format="csr"))[np.where(rows < 0, empty, rows)]
    stacked = np.concatenate([ally, ty, np.zeros((1, ally.shape[1]))])
    labels = stacked[np.where(rows < 0, empty, rows)].argmax(axis=1).astype(np.int64)
    edges, loops = _edges(folder / f"{stem}graph", count)
    note = "Planetoid files" + (f"; {len(unlabeled)} nodes without attributes or label" if len(unlabeled) else "")
    return Graph(name, edges, csr_array(features), labels, loops, unlabeled, note)


def _matrix(path: Path) -> csr_array:
    from scipy.sparse import csr_array

    found = read_pickle(path)
    if not isinstance(found, tuple):
        raise DataError(f"{path} has no sparse matrix", hint=_AGAIN)
    data, indices, indptr, shape = found
    try:
        matrix = csr_array((data.astype(np.float32), indices, indptr), shape=shape)
        matrix.check_format(full_check=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has an invalid sparse matrix: {error}", hint=_AGAIN) from error
    if not np.isfinite(matrix.data).all():
        raise DataError(f"{path} has attributes that are not finite", hint=_AGAIN)
    return matrix


def _one_hot(path: Path) -> Any:
    found = read_pickle(path)
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        raise DataError(f"{path} has no table of one-hot labels", hint=_AGAIN)
    return found


def _test_index(path: Path) -> Ints:
    try:
        lines = path.read_text().split()
        found = np.array([int(line) for line in lines], np.int64)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="copy the file there") from error
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a list of node numbers: {error}", hint=_AGAIN) from error
    if not len(found) or found.min() < 0 or len(np.unique(found)) != len(found):
        raise DataError(f"{path} is empty or names a node twice", hint=_AGAIN)
    if found.max() > 100_000_000:
        raise DataError(f"{path} names node {found.max()}", hint=_AGAIN)
    return found


def _edges(path: Path, count: int) -> tuple[Ints, Ints]:
    found = read_pickle(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} has no dictionary of neighbors", hint=_AGAIN)
    try:
        pairs = np.array([(u, v) for u, ends in found.items() for v in ends], np.int64).reshape(-1, 2).T
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} has something other than lists of node numbers: {error}", hint=_AGAIN) from error
    if pairs.size and (pairs.min() < 0 or pairs.max() >= count):
        raise DataError(f"{path} names node {pairs.max()}, but there are {count} nodes", hint=_AGAIN)
    return undirected(pairs)
