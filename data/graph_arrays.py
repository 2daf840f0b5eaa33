"""Reads graphs from NumPy files: ``NAME_{adj,feat,label}.npy``, and the ``.npz`` files of the GNN benchmark."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from .graph_set import Graph, Ints, undirected

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_AGAIN = "copy the file again"


def locate_triple(folder: Path) -> Path | None:
    """Return the ``NAME_adj.npy`` file in ``folder``, or None."""
    found = sorted(folder.glob("*_adj.npy"))
    return found[0] if found else None


def read_triple(adjacency: Path, name: str) -> Graph:
    """Read ``NAME_adj.npy`` (N, N), ``NAME_feat.npy`` (N, D) and, if it is there, ``NAME_label.npy`` (N,).

    Raises
    ------
    DataError
        A file is missing or damaged, the adjacency is not symmetric, or the files do not fit each other.
    """
    stem = adjacency.name.removesuffix("adj.npy")
    adjacent = _array(adjacency, 2)
    if adjacent.shape[0] != adjacent.shape[1]:
        raise DataError(f"{adjacency} has the shape {adjacent.shape}, which is not square", hint=_AGAIN)
    if not np.isfinite(adjacent).all():
        raise DataError(f"{adjacency} has entries that are not finite", hint=_AGAIN)
    if not np.array_equal(adjacent != 0, (adjacent != 0).T):
        row, column = np.argwhere((adjacent != 0) != (adjacent != 0).T)[0]
        raise DataError(
            f"{adjacency} is not symmetric: it has only one of the edges ({row}, {column}) and ({column}, {row})",
            hint="the graph must be undirected: save max(A, A.T)",
        )
    path = adjacency.with_name(f"{stem}feat.npy")
    features = _array(path, 2)
    _check_rows(path, features, len(adjacent))
    _check_finite(path, features)
    labels_path = adjacency.with_name(f"{stem}label.npy")
    labels = _labels(labels_path, len(adjacent)) if labels_path.exists() else None
    edges, loops = undirected(np.array(np.nonzero(adjacent), np.int64))
    return Graph(name, edges, features.astype(np.float32), labels, loops, note=f"{stem}*.npy")


def locate_npz(folder: Path) -> Path | None:
    """Return the only ``.npz`` file in ``folder``, or None."""
    found = sorted(folder.glob("*.npz"))
    return found[0] if len(found) == 1 else None


def read_npz(path: Path, name: str) -> Graph:
    """Read a file of the GNN benchmark, such as Amazon Photo: CSR parts of adjacency and attributes, and labels.

    One direction of an edge suffices, as in these files.

    Raises
    ------
    DataError
        The file is damaged, lacks an array, or its arrays do not fit each other.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: np.asarray(stored[key]) for key in stored.files if stored[key].dtype != object}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a NumPy archive without Python objects: {error}", hint=_AGAIN) from error
    adjacent = _csr(path, arrays, "adj").tocoo()
    if adjacent.shape[0] != adjacent.shape[1]:
        raise DataError(f"{path}: the adjacency has the shape {adjacent.shape}, which is not square", hint=_AGAIN)
    if "attr_matrix" in arrays:
        features: Any = arrays["attr_matrix"].astype(np.float32)
    else:
        features = _csr(path, arrays, "attr")
    _check_rows(path, features, adjacent.shape[0])
    _check_finite(path, features if isinstance(features, np.ndarray) else features.data)
    labels = _checked_labels(path, arrays["labels"], adjacent.shape[0]) if "labels" in arrays else None
    edges, loops = undirected(np.array([adjacent.row, adjacent.col], np.int64))
    return Graph(name, edges, features, labels, loops, note=path.name)


def _csr(path: Path, arrays: dict[str, NDArray[Any]], prefix: str) -> csr_array:
    from scipy.sparse import csr_array

    names = [f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape")]
    if missing := [each for each in names if each not in arrays]:
        raise DataError(f"{path} has no array '{missing[0]}'", hint="give a file of the GNN benchmark")
    data, indices, indptr, shape = (arrays[each] for each in names)
    try:
        matrix = csr_array((data.astype(np.float32), indices, indptr), shape=tuple(int(n) for n in shape))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: the arrays {prefix}_* are no sparse matrix: {error}", hint=_AGAIN) from error
    return matrix


def _array(path: Path, axes: int) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} does not contain {path.name}", hint="copy the file there") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a NumPy file without Python objects: {error}", hint=_AGAIN) from error
    if not isinstance(found, np.ndarray) or found.ndim != axes or found.dtype.kind not in "biuf":
        raise DataError(f"{path} is not an array of numbers with {axes} axes", hint=_AGAIN)
    return found


def _check_rows(path: Path, features: Any, nodes: int) -> None:
    if features.shape[0] != nodes:
        raise DataError(f"{path} has attributes of {features.shape[0]} nodes, but the graph has {nodes}", hint=_AGAIN)


def _check_finite(path: Path, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{path} has attributes that are not finite", hint="replace or remove them")


def _labels(path: Path, nodes: int) -> Ints:
    return _checked_labels(path, _array(path, 1), nodes)


def _checked_labels(path: Path, labels: NDArray[Any], nodes: int) -> Ints:
    if labels.shape != (nodes,):
        raise DataError(f"{path} has {len(labels)} labels, but the graph has {nodes} nodes", hint=_AGAIN)
    if not np.isfinite(labels).all() or (labels < 0).any():
        raise DataError(f"{path} has labels that are no classes from 0", hint=_AGAIN)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
