"""Data sets of PyTorch Geometric by name, such as ``pyg:Amazon/Photo``; needs the extra ``graph``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, MissingExtraError, NotFoundError
from .graph_set import Graph, undirected

PREFIX = "pyg:"
#: Classes of ``torch_geometric.datasets`` that take a folder and a name, and hold one graph.
CLASSES = ("Planetoid", "Amazon", "Coauthor", "CitationFull", "WikipediaNetwork", "Airports")


def read_pyg(name: str, folder: Path) -> Graph:
    """Read a data set; PyTorch Geometric downloads it to ``folder`` if it is not there.

    PyTorch Geometric unpickles the files of that folder: use one that only you can write to.

    Parameters
    ----------
    name : str
        ``pyg:CLASS/NAME``.

    Raises
    ------
    MissingExtraError
        torch_geometric is not installed.
    NotFoundError
        The class is not one of :data:`CLASSES`.
    DataError
        PyTorch Geometric cannot read it.
    """
    kind, _, part = name.removeprefix(PREFIX).partition("/")
    if kind not in CLASSES or not part:
        raise NotFoundError(f"unknown data set '{name}'", hint=f"use pyg:CLASS/NAME with one of {', '.join(CLASSES)}")
    try:
        module = import_module("torch_geometric.datasets")
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch_geometric", "graph") from error
    try:
        data: Any = getattr(module, kind)(str(folder), part)[0]
    except Exception as error:  # whatever a downloader, an unpickler or a file system raises
        raise DataError(
            f"PyTorch Geometric cannot read {name} in {folder}: {' '.join(str(error).split())[:200]}"
        ) from error
    edges, loops = undirected(np.asarray(data.edge_index.cpu().numpy(), np.int64))
    features = np.asarray(data.x.cpu().numpy(), np.float32)
    labels = None if data.y is None else np.unique(data.y.cpu().numpy(), return_inverse=True)[1].astype(np.int64)
    return Graph(name, edges, features, labels, loops, note=f"PyTorch Geometric, {kind}/{part}")
