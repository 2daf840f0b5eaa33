"""Graphs by name: formats, published sizes, and files that are broken."""

from __future__ import annotations

import pickle
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from farshore.core.errors import DataError, MissingExtraError, NotFoundError
from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph, undirected
from farshore.data.graphs import data_name, load_graph, read_folder

from .conftest import data_folder

Change = Callable[[Path], object]


# ---- Planetoid files, of a graph with 4 training and 3 test nodes; node 5 has neither attributes nor a label


@pytest.fixture
def planetoid(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    graph = defaultdict(list, {0: [1, 1, 2], 1: [0], 2: [0, 7], 3: [3], 7: [2], 4: [6], 6: [4]})
    parts = {
        "allx": csr_matrix(np.eye(4, 3, dtype=np.float32)),
        "ally": np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.int32),
        "tx": csr_matrix(np.array([[0, 0, 7], [0, 0, 4], [0, 0, 6]], np.float32)),
        "ty": np.array([[0, 1], [1, 0], [0, 1]], np.int32),
        "graph": graph,
    }
    for name, content in parts.items():
        save(folder / f"ind.toy.{name}", content)
    (folder / "ind.toy.test.index").write_text("7\n4\n6\n")
    return folder


def save(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_planetoid_rows_of_the_test_range_are_put_in_place_and_gaps_filled(planetoid: Path) -> None:
    graph = read_folder(planetoid, "toy")
    assert graph.nodes == 8
    features: Any = graph.features
    assert features.toarray()[:, 2].tolist() == [0, 0, 1, 0, 4, 0, 6, 7]
    assert graph.labels is not None
    assert graph.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 1]
    assert graph.unlabeled.tolist() == [5]
    assert graph.edges.T.tolist() == [[0, 1], [0, 2], [2, 7], [4, 6]]
    assert graph.loops.tolist() == [3]
    assert graph.degrees().tolist() == [2, 1, 2, 1, 1, 0, 1, 1]


def test_nodes_without_a_label_can_be_left_out(planetoid: Path) -> None:
    graph = read_folder(planetoid, "toy").labeled_only()
    assert graph.nodes == 7
    assert graph.edges.T.tolist() == [[0, 1], [0, 2], [2, 6], [4, 5]]
    assert graph.loops.tolist() == [3]
    assert graph.labels is not None
    assert graph.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_files_in_a_raw_folder_are_found(planetoid: Path, tmp_path: Path) -> None:
    (tmp_path / "Toy").mkdir()
    planetoid.rename(tmp_path / "Toy" / "raw")
    assert read_folder(tmp_path / "Toy", "toy").nodes == 8


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("graph", truncate, "truncated or damaged"),
        ("allx", truncate, "truncated or damaged"),
        ("tx", Path.unlink, "cannot be read"),
        ("tx", lambda path: save(path, csr_matrix(np.ones((2, 3)))), "has 2 rows, expected 3"),
        ("tx", lambda path: save(path, csr_matrix(np.ones((3, 5)))), "different numbers of columns"),
        ("ally", lambda path: save(path, np.ones((5, 2))), "has 5 rows, expected 4"),
        ("ty", lambda path: save(path, np.ones(3)), "has no table of one-hot labels"),
        ("allx", lambda path: save(path, np.ones((4, 3))), "has no sparse matrix"),
        ("allx", lambda path: save(path, csr_matrix(np.full((4, 3), np.nan))), "not finite"),
        ("graph", lambda path: save(path, {0: [99]}), "names node 99, but there are 8 nodes"),
        ("graph", lambda path: save(path, {0: ["a"]}), "something other than lists of node numbers"),
        ("graph", lambda path: save(path, np.ones(3)), "has no dictionary"),
        ("test.index", lambda path: path.write_text("7\n4\nx\n"), "is not a list of node numbers"),
        ("test.index", lambda path: path.write_text("7\n4\n4\n"), "names a node twice"),
        ("test.index", lambda path: path.write_text("7\n4\n1\n"), "names node 1, which is in ind.toy.allx"),
    ],
)
def test_a_broken_planetoid_file_is_named_in_one_line(planetoid: Path, file: str, change: Change, message: str) -> None:
    change(planetoid / f"ind.toy.{file}")
    with pytest.raises(DataError, match=message) as error:
        read_folder(planetoid, "toy")
    assert f"ind.toy.{file}" in str(error.value)
    assert "\n" not in str(error.value)


def test_indices_outside_a_matrix_are_refused(planetoid: Path) -> None:
    matrix = csr_matrix(np.eye(4, 3, dtype=np.float32))
    matrix.indices = matrix.indices + 7
    save(planetoid / "ind.toy.allx", matrix)
    with pytest.raises(DataError, match=r"ind\.toy\.allx has an invalid sparse matrix"):
        read_folder(planetoid, "toy")


# ---- NumPy files


ADJACENCY = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 0]], np.int32)


@pytest.fixture
def triple(tmp_path: Path) -> Path:
    for name, array in {"adj": ADJACENCY, "feat": np.eye(3), "label": np.array([0, 2, 2])}.items():
        np.save(tmp_path / f"toy_{name}.npy", array)
    return tmp_path


def test_npy_triples_are_read(triple: Path) -> None:
    graph = read_folder(triple, "toy")
    assert graph.edges.T.tolist() == [[0, 1], [1, 2]]
    assert graph.loops.tolist() == [0]
    assert graph.labels is not None
    assert graph.labels.tolist() == [0, 1, 1], "labels are numbered without gaps"
    assert graph.features.dtype == np.float32


def test_labels_are_optional(triple: Path) -> None:
    (triple / "toy_label.npy").unlink()
    graph = read_folder(triple, "toy")
    assert graph.labels is None
    assert graph.classes == 0


def changed(array: np.ndarray[Any, Any], index: Any, value: float) -> np.ndarray[Any, Any]:
    copy = array.astype(float)
    copy[index] = value
    return copy


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adj", lambda p: np.save(p, changed(ADJACENCY, (0, 2), 1)), r"not symmetric: .* \(0, 2\) and \(2, 0\)"),
        ("adj", lambda p: np.save(p, ADJACENCY[:2]), r"shape \(2, 3\), which is not square"),
        ("adj", lambda p: np.save(p, changed(ADJACENCY, (0, 1), np.nan)), "entries that are not finite"),
        ("adj", truncate, "is not a NumPy file"),
        ("feat", lambda p: np.save(p, np.eye(4)), "attributes of 4 nodes, but the graph has 3"),
        ("feat", lambda p: np.save(p, changed(np.eye(3), (1, 1), np.nan)), "attributes that are not finite"),
        ("feat", lambda p: np.save(p, np.array([[None] * 3] * 3), allow_pickle=True), "without Python objects"),
        ("feat", Path.unlink, "does not contain toy_feat.npy"),
        ("label", lambda p: np.save(p, np.zeros(5, int)), "has 5 labels, but the graph has 3 nodes"),
        ("label", lambda p: np.save(p, np.array([0, -1, 1])), "no classes from 0"),
        ("label", lambda p: np.save(p, np.array(["a", "b", "c"])), "not an array of numbers"),
    ],
)
def test_a_broken_npy_file_is_named_in_one_line(triple: Path, file: str, change: Change, message: str) -> None:
    change(triple / f"toy_{file}.npy")
    with pytest.raises(DataError, match=message) as error:
        read_folder(triple, "toy")
    assert f"toy_{file}.npy" in str(error.value)
    assert "\n" not in str(error.value)


def npz(path: Path, **changes: Any) -> Path:
    one_direction, features = csr_matrix(np.triu(ADJACENCY)), csr_matrix(np.eye(3, 5))
    arrays: dict[str, Any] = {"labels": np.array([3, 4, 4])}
    for prefix, matrix in (("adj", one_direction), ("attr", features)):
        arrays |= {f"{prefix}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    arrays |= {"node_names": np.array(["a", "b", "c"])}
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_npz_files_of_the_gnn_benchmark_are_read_with_edges_in_one_direction(tmp_path: Path) -> None:
    path = npz(tmp_path / "amazon_electronics_photo.npz")
    for place in (path, tmp_path):
        graph = read_folder(place, "amap")
        assert graph.edges.T.tolist() == [[0, 1], [1, 2]]
        assert graph.width == 5
        assert graph.labels is not None
        assert graph.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adj_data": None}, "has no array 'adj_data'"),
        ({"adj_indices": np.array([0, 9, 2, 2])}, r"the arrays adj_\* are no sparse matrix"),
        ({"attr_data": np.array([1, np.inf, 1])}, "attributes that are not finite"),
        ({"attr_shape": np.array([2, 5])}, r"the arrays attr_\* are no sparse matrix"),
        ({"labels": np.zeros(4, int)}, "has 4 labels, but the graph has 3 nodes"),
    ],
)
def test_a_broken_npz_file_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_folder(npz(tmp_path / "toy.npz", **changes), "toy")
    assert "toy.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_npz_file_is_named(tmp_path: Path) -> None:
    path = npz(tmp_path / "toy.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"toy\.npz is not a NumPy archive"):
        read_folder(path, "toy")


# ---- air traffic, PyTorch Geometric, generated


def test_airports_have_one_hot_degrees_in_the_order_of_the_label_file(tmp_path: Path) -> None:
    (tmp_path / "brazil-airports.edgelist").write_text("12 5\n5 12\n5 9\n9 9\n")
    (tmp_path / "labels-brazil-airports.txt").write_text("node label\n5 1\n9 0\n12 1\n")
    graph = read_folder(tmp_path, "bat")
    assert graph.edges.T.tolist() == [[0, 1], [0, 2]]
    assert np.asarray(graph.features).argmax(axis=1).tolist() == graph.degrees().tolist() == [2, 2, 1]
    (tmp_path / "brazil-airports.edgelist").write_text("12 5\n5 x\n")
    with pytest.raises(DataError, match=r"brazil-airports\.edgelist, line 2: expected two integers"):
        read_folder(tmp_path, "bat")
    (tmp_path / "brazil-airports.edgelist").write_text("12 6\n")
    with pytest.raises(DataError, match="names the node 6, which labels-brazil"):
        read_folder(tmp_path, "bat")


def test_data_sets_of_pytorch_geometric_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    given = []

    class Amazon:
        def __init__(self, root: str, name: str) -> None:
            given.append((root, name))

        def __getitem__(self, index: int) -> Any:
            edges = torch.tensor([[0, 1, 2], [1, 0, 2]])
            return types.SimpleNamespace(edge_index=edges, x=torch.eye(3), y=torch.tensor([1, 0, 1]))

    module = types.ModuleType("torch_geometric.datasets")
    module.Amazon = Amazon  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", module)
    graph = load_graph("pyg:Amazon/Photo", lambda name: tmp_path / name, Seed(0))
    assert given == [(str(tmp_path / "pyg" / "Amazon"), "Photo")]
    assert graph.edges.T.tolist() == [[0, 1]]
    assert graph.loops.tolist() == [2]
    with pytest.raises(NotFoundError, match="unknown data set 'pyg:Entities/AM'"):
        load_graph("pyg:Entities/AM", lambda name: tmp_path, Seed(0))
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    with pytest.raises(MissingExtraError, match=r"graph"):
        load_graph("pyg:Amazon/Photo", lambda name: tmp_path, Seed(0))


def test_the_synthetic_graph_needs_no_data_set_and_is_the_same_for_a_seed() -> None:
    def never(name: str) -> Path:
        raise AssertionError(name)

    one, again, other = (load_graph("synthetic", never, Seed(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.edges, again.edges)
    assert np.array_equal(np.asarray(one.features), np.asarray(again.features))
    assert not np.array_equal(one.edges, other.edges)
    assert (one.nodes, one.width, one.classes) == (600, 64, 4)
    assert one.labels is not None
    inside = (one.labels[one.edges[0]] == one.labels[one.edges[1]]).mean()
    assert 0.7 < inside < 0.85, "of 30 % of the edges, ends are drawn from all four classes"
    assert 7 < one.degrees().mean() < 8
    assert data_name("synthetic") == ""


def test_a_folder_without_a_graph_is_named_with_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no graph 'cora' .*ind\.NAME"):
        read_folder(tmp_path, "cora")
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "nowhere", "cora")


def test_a_graph_checks_its_parts() -> None:
    edges = np.array([[0], [5]])
    with pytest.raises(DataError, match="a node that is not one of the 2"):
        Graph("g", edges, np.ones((2, 1), np.float32))
    with pytest.raises(DataError, match="not all finite"):
        Graph("g", edges[:, :0], np.full((2, 1), np.inf, np.float32))
    with pytest.raises(DataError, match="has 3 labels for 2 nodes"):
        Graph("g", edges[:, :0], np.ones((2, 1), np.float32), np.zeros(3, np.int64))
    assert undirected(np.array([[2, 1, 3], [1, 2, 3]]))[0].tolist() == [[1], [2]]


# ---- the published graphs


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "name", "sizes", "classes", "loops", "homophily"),
    [
        ("planetoid/Cora", "cora", (2708, 1433, 5278), [351, 217, 418, 818, 426, 298, 180], 0, 0.81),
        ("planetoid/CiteSeer", "citeseer", (3327, 3703, 4552), [264, 590, 668, 701, 596, 508], 124, 0.74),
        ("graphs/bat", "bat", (131, 81, 1003), [32, 32, 32, 35], 71, 0.43),
        ("graphs/eat", "eat", (399, 203, 5993), [99, 99, 99, 102], 2, 0.41),
        ("graphs/uat", "uat", (1190, 239, 13599), [297, 297, 297, 299], 0, 0.70),
    ],
)
def test_published_graphs_have_the_published_sizes(
    folder: str, name: str, sizes: tuple[int, ...], classes: list[int], loops: int, homophily: float
) -> None:
    graph = read_folder(data_folder(folder), name)
    assert (graph.nodes, graph.width, graph.edges.shape[1]) == sizes
    assert graph.labels is not None
    assert np.bincount(graph.labels).tolist() == classes
    assert len(graph.loops) == loops
    assert (graph.labels[graph.edges[0]] == graph.labels[graph.edges[1]]).mean() == pytest.approx(homophily, abs=5e-3)
    stored = {"cora": 49_216, "citeseer": 105_165}
    if name in stored:
        assert graph.features.nnz == stored[name]  # type: ignore[union-attr]
    else:
        assert np.asarray(graph.features).argmax(axis=1).tolist() == graph.degrees().tolist(), "one-hot degrees"
