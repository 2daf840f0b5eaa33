"""Reads the air-traffic graphs of struc2vec: ``NAME-airports.edgelist`` and ``labels-NAME-airports.txt``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .graph_set import Floats, Graph, Ints, undirected

#: Region of each data set's files.
REGIONS = {"bat": "brazil", "eat": "europe", "uat": "usa"}


def locate_airports(folder: Path, name: str) -> Path | None:
    """Return the edge list of a data set in ``folder``, or None."""
    path = folder / f"{REGIONS.get(name, name)}-airports.edgelist"
    return path if path.is_file() else None


def read_airports(edge_list: Path, name: str) -> Graph:
    """Read a graph; nodes have the order of the label file, attributes are one-hot degrees.

    This gives the matrices of the published ``.npy`` files.

    Raises
    ------
    DataError
        A file is missing or malformed; the message names file and line.
    """
    labels_path = edge_list.with_name(f"labels-{edge_list.stem}.txt")
    table = _numbers(labels_path, header=True)
    number = {int(node): index for index, node in enumerate(table[:, 0])}
    pairs = _numbers(edge_list, header=False)
    if unknown := [int(node) for node in pairs.ravel() if int(node) not in number]:
        raise DataError(f"{edge_list} names the node {unknown[0]}, which {labels_path.name} does not have")
    edges, loops = undirected(np.array([[number[int(node)] for node in row] for row in pairs], np.int64).T)
    labels = np.unique(table[:, 1], return_inverse=True)[1].astype(np.int64)
    degrees = np.bincount(np.concatenate([edges.ravel(), loops]), minlength=len(table))
    return Graph(name, edges, one_hot(degrees), labels, loops, note=f"{edge_list.name}; attributes are one-hot degrees")


def one_hot(degrees: Ints) -> Floats:
    """Return one-hot vectors (N, max + 1)."""
    return np.eye(int(degrees.max()) + 1, dtype=np.float32)[degrees]


def _numbers(path: Path, *, header: bool) -> Ints:
    """Read lines of two integers."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="copy the file there") from error
    rows = []
    for place, line in enumerate(lines, start=1):
        if not line.strip() or (header and place == 1):
            continue
        try:
            first, second = map(int, line.split())
        except ValueError as error:
            raise DataError(f"{path}, line {place}: expected two integers", hint="copy the file again") from error
        rows.append((first, second))
    if not rows:
        raise DataError(f"{path} is empty", hint="copy the file again")
    return np.array(rows, np.int64)
