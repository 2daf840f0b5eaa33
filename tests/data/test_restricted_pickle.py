"""The one reader of pickles: hostile files are refused before anything that they name is called."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from farshore.core.errors import DataError
from farshore.data.restricted_pickle import read_pickle


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Call:
    """Unpickles to the result of a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("__import__('pathlib').Path('{}').touch()",), "eval"),
        (getattr, (np, "load"), "getattr"),
        (np.load, ("{}",), "load"),
        (__import__, ("os",), "__import__"),
    ],
)
def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_called(
    tmp_path: Path, function: Any, arguments: tuple[Any, ...], name: str
) -> None:
    touched = tmp_path / "touched"
    filled = [a.format(touched) if isinstance(a, str) else 0 if a is np else a for a in arguments]
    path = write(tmp_path / "ind.x.allx", Call(function, *filled))
    with pytest.raises(DataError, match=f"it names .*{name}"):
        read_pickle(path)
    assert not touched.exists()


def test_a_name_with_parts_of_an_allowed_module_is_refused(tmp_path: Path) -> None:
    # Protocol 4 resolves dotted names: numpy.ndarray.__class__ would lead to every other object.
    path = tmp_path / "x"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.")
    with pytest.raises(DataError, match=r"it names numpy.ndarray.__class__"):
        read_pickle(path)


@pytest.mark.parametrize("content", [b"\x80\x02Pabc\n.", b"\x80\x02X\x01\x00\x00\x00aQ."])
def test_a_reference_to_something_outside_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="outside the file"):
        read_pickle(tmp_path / "x")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_matrices_and_dictionaries_are_read(tmp_path: Path, protocol: int) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.array_equal(read_pickle(write(tmp_path / "a", array, protocol)), array)
    columns_first = np.asfortranarray(array)
    assert np.array_equal(read_pickle(write(tmp_path / "f", columns_first, protocol)), array)
    matrix = csr_matrix(array)
    data, indices, indptr, shape = read_pickle(write(tmp_path / "m", matrix, protocol))
    assert np.array_equal(csr_matrix((data, indices, indptr), shape=shape).toarray(), array)
    assert read_pickle(write(tmp_path / "d", {1: [2, 3]}, protocol)) == {1: [2, 3]}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_pickle_is_named(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "ind.cora.tx", csr_matrix(np.eye(40)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"ind\.cora\.tx is truncated or damaged") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def test_objects_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has an array of the type"):
        read_pickle(write(tmp_path / "o", np.array([[1], "a"], dtype=object)))
    content = pickle.dumps(np.arange(100, dtype=np.int32), protocol=2).replace(b"Kd\x85", b"Ke\x85")
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(DataError, match="content of another size"):
        read_pickle(tmp_path / "s")
    with pytest.raises(DataError, match="a str instead of an array"):
        read_pickle(write(tmp_path / "t", "text"))
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(tmp_path / "missing")
