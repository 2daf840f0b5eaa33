"""Loads graphs with node attributes by name; detects the format of their folder."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError, MissingExtraError
from ..core.packages import EXTRAS, missing
from ..core.seeds import Seed
from .graph_airports import locate_airports, read_airports
from .graph_arrays import locate_npz, locate_triple, read_npz, read_triple
from .graph_planetoid import locate_planetoid, read_planetoid
from .graph_pyg import PREFIX, read_pyg
from .graph_set import Graph
from .graph_synthetic import make_graph
from .registry import Find

__all__ = ["CLUSTERS", "SYNTHETIC", "Graph", "data_name", "load_graph", "read_folder"]

SYNTHETIC = "synthetic"
#: Number of classes of published graphs.
CLUSTERS = {"cora": 7, "citeseer": 6, "amap": 8, "bat": 4, "eat": 4, "uat": 4, SYNTHETIC: 4}
_CONTENTS = "ind.NAME.* of Planetoid, NAME_{adj,feat,label}.npy, one .npz, or REGION-airports.edgelist"


def data_name(name: str) -> str:
    """Return the name of the data set that a node must hold for a graph; empty for the synthetic one.

    For ``pyg:CLASS/NAME`` it is ``pyg``, a folder for all data sets of PyTorch Geometric.
    """
    if name == SYNTHETIC:
        return ""
    return "pyg" if name.startswith(PREFIX) else name


def load_graph(name: str, find: Find, seed: Seed) -> Graph:
    """Read a graph.

    Parameters
    ----------
    name : str
        ``synthetic``, ``pyg:CLASS/NAME``, or the name of a data set: a folder or file in one of the known formats.
    find : callable
        Returns the path of a data set, e.g. ``session.data``; not called for ``synthetic``.
    seed : Seed
        Of the synthetic graph; must be equal in all programs of a run.

    Raises
    ------
    DataError
        The data set is not found, or one of its files is missing or damaged; the message names the file.
    MissingExtraError
        A package that reads the format is not installed.
    """
    if name == SYNTHETIC:
        return make_graph(seed)
    path = Path(find(data_name(name)))
    return (
        read_pyg(name, path / name.removeprefix(PREFIX).partition("/")[0])
        if name.startswith(PREFIX)
        else read_folder(path, name)
    )


def read_folder(path: Path, name: str) -> Graph:
    """Read the graph in a folder or an ``.npz`` file; raises as :func:`load_graph`."""
    if lacking := missing(["scipy"]):
        raise MissingExtraError(lacking[0], EXTRAS[lacking[0]])
    try:
        if path.suffix == ".npz" and path.is_file():
            return read_npz(path, name)
        if not path.is_dir():
            raise DataError(
                f"the folder {path} of the graph '{name}' does not exist", hint=f"it must contain {_CONTENTS}"
            )
        if (found := locate_planetoid(path)) is not None:
            return read_planetoid(found, name)
        if (found := locate_triple(path)) is not None:
            return read_triple(found, name)
        if (found := locate_airports(path, name)) is not None:
            return read_airports(found, name)
        if (found := locate_npz(path)) is not None:
            return read_npz(found, name)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    raise DataError(f"{path} contains no graph '{name}'", hint=f"give a folder that contains {_CONTENTS}")
