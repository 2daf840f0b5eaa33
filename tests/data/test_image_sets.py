"""Image sets: validation, the digits data set, and errors for data sets that are not found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import DataError
from farshore.core.seeds import Seed
from farshore.data.images import KNOWN, ImageSet, ImageTask, load_images

SEED = Seed(0)


def find_at(folder: Path) -> Callable[[str], Path]:
    return lambda name: folder


def find_nothing(name: str) -> Path:
    raise DataError(f"no data set '{name}'", hint=f"join with --data {name}=PATH")


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


# ---- validation


def test_inconsistent_arrays_and_labels_are_refused() -> None:
    images, labels = pixels(2, 1, 4, 4), np.array([0, 1])
    for wrong in (images.astype(np.float32), images[0], pixels(2, 4, 4, 4)):
        with pytest.raises(DataError, match="uint8"):
            ImageSet(wrong, labels, ("a", "b"), "")
    with pytest.raises(DataError, match="int64"):
        ImageSet(images, labels[:1], ("a", "b"), "")
    with pytest.raises(DataError, match="label 1 "):
        ImageSet(images, labels, ("a",), "")
    with pytest.raises(DataError, match="label -1 "):
        ImageSet(images, labels - 1, ("a", "b"), "")
    with pytest.raises(DataError, match="no images"):
        ImageSet(images[:0], labels[:0], ("a",), "")
    ours = ImageSet(images, labels, ("a", "b"), "")
    with pytest.raises(DataError, match="differ"):
        ImageTask("t", ours, ImageSet(pixels(2, 3, 4, 4), labels, ("a", "b"), ""))


def test_digest_depends_on_pixels_labels_order_and_shape() -> None:
    images, labels = pixels(2, 1, 4, 2), np.array([0, 1])
    sets = [
        (images, labels),
        (images[::-1], labels),
        (images, labels[::-1]),
        (images.reshape(2, 1, 2, 4), labels),
        (images ^ np.uint8(1), labels),
    ]
    digests = [ImageSet(i, lab, ("a", "b"), "").digest() for i, lab in sets]
    assert len(set(digests)) == len(sets)
    assert ImageSet(images.copy(), labels.copy(), ("c", "d"), "other").digest() == digests[0]


# ---- digits


def test_digits_need_no_folder_and_have_a_stratified_split() -> None:
    task = load_images("digits", find_nothing, SEED)
    assert task.train.images.shape == (1297, 1, 8, 8)
    assert task.test.images.shape == (500, 1, 8, 8)
    assert task.train.images.max() == task.test.images.max() == 255
    assert task.classes == tuple("0123456789")
    train, test = (np.bincount(s.labels, minlength=10) for s in (task.train, task.test))
    assert np.all(np.abs(test - (train + test) * 500 / 1797) < 1)


def test_digits_are_those_of_scikit_learn_each_in_exactly_one_part() -> None:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    task = load_images("digits", find_nothing, SEED)
    both = np.concatenate([task.train.images, task.test.images])[:, 0].reshape(1797, 64)
    labels = np.concatenate([task.train.labels, task.test.labels])
    ours = sorted((*np.rint(b / 255 * 16).astype(int).tolist(), int(n)) for b, n in zip(both, labels, strict=True))
    assert ours == sorted((*d.astype(int).tolist(), int(n)) for d, n in zip(found.data, found.target, strict=True))


def test_digits_split_depends_on_the_seed_only() -> None:
    first, again, other = (load_images("digits", find_nothing, Seed(s)).test.digest() for s in (0, 0, 1))
    assert first == again != other


# ---- names and folders


def test_error_about_an_unknown_format_lists_accepted_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image data set 'cifar10'") as caught:
        load_images("cifar10", find_at(tmp_path), SEED)
    assert all(w in caught.value.hint for w in ("cifar-10-batches-py", "parquet", "train/<class>"))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="no image data set") as caught:
        load_images("cifar10", find_at(tmp_path), SEED)
    assert "unpack cifar-10-python.tar.gz" in caught.value.hint


def test_error_about_a_missing_data_set_suggests_the_closest_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'cifar10'") as caught:
        load_images("cifar10", find_nothing, SEED)
    assert "--data cifar10=PATH" in caught.value.hint
    with pytest.raises(DataError) as caught:
        load_images("CIFAR-10", find_nothing, SEED)
    assert "did you mean 'cifar10'" in caught.value.hint
    with pytest.raises(DataError, match="not a folder"):
        load_images("cifar10", find_at(tmp_path / "none"), SEED)


def test_importing_the_readers_imports_no_heavy_package() -> None:
    code = (
        "import sys, farshore.data.images, farshore.data.partition, farshore.data.partition_files, "
        "farshore.data.partition_report\n"
        "heavy = 'torch torchvision PIL sklearn scipy pandas pyarrow'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_known_set_but_digits_has_an_official_format() -> None:
    assert [name for name, known in KNOWN.items() if known.official is None] == ["digits"]
    assert all(not k.names or len(k.names) == k.classes for k in KNOWN.values())
