"""Reading the official formats, from tiny files of the same layout whose checksums are patched in."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import DataError, MissingExtraError
from farshore.core.seeds import Seed
from farshore.data import image_idx, image_set
from farshore.data.images import load_images

datasets = pytest.importorskip("torchvision.datasets")
scipy_io = pytest.importorskip("scipy.io")

SEED = Seed(0)


def load(name: str, folder: Path) -> Any:
    return load_images(name, lambda _: folder, SEED)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---- IDX


def idx(array: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return (2048 + array.ndim).to_bytes(4, "big") + sizes + array.tobytes()


IDX = {
    "train-images-idx3-ubyte": pixels(5, 4, 3),
    "train-labels-idx1-ubyte": np.array([0, 9, 1, 1, 3], np.uint8),
    "t10k-images-idx3-ubyte": pixels(2, 4, 3, seed=1),
    "t10k-labels-idx1-ubyte": np.array([7, 0], np.uint8),
}


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, array in IDX.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        monkeypatch.setitem(image_idx.MNIST_MD5, f"{name}.gz", md5(tmp_path / f"{name}.gz"))
        monkeypatch.setitem(image_idx.FASHION_MD5, f"{name}.gz", "0" * 32)
    return tmp_path


def test_gzipped_idx_files_are_read_and_their_checksums_verified(mnist: Path) -> None:
    task = load("mnist", mnist)
    assert np.array_equal(task.train.images[:, 0], IDX["train-images-idx3-ubyte"])
    assert task.train.images.shape == (5, 1, 4, 3)
    assert task.train.labels.tolist() == [0, 9, 1, 1, 3]
    assert task.test.labels.tolist() == [7, 0]
    assert task.classes == tuple("0123456789")
    assert "verified" in task.train.note


def test_unpacked_idx_files_give_the_same_set_and_are_noted_as_unverified(mnist: Path) -> None:
    packed = load("mnist", mnist)
    raw = mnist / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in IDX.items():
        (raw / name).write_bytes(idx(array))
        (mnist / f"{name}.gz").unlink()
    plain = load("mnist", mnist)
    assert plain.train.digest() == packed.train.digest()
    assert "verified" not in plain.train.note
    assert "no checksum" in plain.train.note


def test_idx_reader_agrees_with_torchvision(mnist: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in IDX.items():
        (raw / name).write_bytes(idx(array))
    theirs = datasets.MNIST(tmp_path / "root", train=True, download=False)
    ours = load("mnist", mnist).train
    assert np.array_equal(ours.images[:, 0], theirs.data.numpy())
    assert np.array_equal(ours.labels, theirs.targets.numpy())


def test_checksums_are_those_of_torchvision() -> None:
    assert dict(datasets.MNIST.resources) == image_idx.MNIST_MD5
    assert dict(datasets.FashionMNIST.resources) == image_idx.FASHION_MD5


def test_mnist_files_are_refused_as_fashion_mnist(mnist: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is a file of MNIST"):
        load("fmnist", mnist)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("t10k-images-idx3-ubyte", None, "does not contain t10k-images"),
        ("train-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)), "5 train images and 4 labels"),
        ("train-images-idx3-ubyte", idx(pixels(5, 4, 3))[:-1], "has 59 bytes of data, but its header says 60"),
        ("train-images-idx3-ubyte", idx(pixels(5, 4, 3)) + b"x", "more than 60 bytes"),
        ("train-images-idx3-ubyte", idx(np.zeros(5, np.uint8)), "magic number 2049"),
        ("train-images-idx3-ubyte", b"\0\0", "magic number 0"),
        ("train-images-idx3-ubyte", idx(pixels(5, 4, 3))[:4] + b"\xff" * 12, "sides of 1 to"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 4 + b"\0\0\x04\0" * 2, "MiB are allowed"),
        ("train-labels-idx1-ubyte", idx(np.array([0, 1, 2, 3, 10], np.uint8)), "label 10"),
    ],
)
def test_error_about_a_bad_idx_file_names_it_and_has_a_hint(
    mnist: Path, name: str, content: bytes | None, word: str
) -> None:
    (mnist / f"{name}.gz").unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=word) as caught:
        load("mnist", mnist)
    assert str(mnist) in caught.value.message
    assert caught.value.hint


def test_gzipped_file_is_not_decompressed_beyond_the_size_in_its_header(
    mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "train-images-idx3-ubyte.gz"
    (mnist / name).write_bytes(gzip.compress(idx(pixels(5, 4, 3)) + bytes(1 << 24)))
    monkeypatch.setitem(image_idx.MNIST_MD5, name, md5(mnist / name))
    taken = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: taken.append(size) or real(self, size))
    with pytest.raises(DataError, match="more than 60 bytes"):
        load("mnist", mnist)
    assert all(0 <= size <= 60 for size in taken)


def test_truncated_gzipped_file_is_refused(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "train-images-idx3-ubyte.gz"
    (mnist / name).write_bytes((mnist / name).read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", mnist)
    monkeypatch.setitem(image_idx.MNIST_MD5, name, md5(mnist / name))
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", mnist)


def test_files_that_were_compressed_again_are_read_and_noted(mnist: Path) -> None:
    original = load("mnist", mnist)
    for path in mnist.glob("*.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
    again = load("mnist", mnist)
    assert again.train.digest() == original.train.digest()
    assert "not that of the published files" in again.train.note


# ---- CIFAR


def write_cifar(folder: Path, parts: dict[str, dict[str, Any]]) -> list[list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in parts.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return [[name, md5(folder / name)] for name in parts]


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five batches of two images, R, G, B planes row by row, as the archive has them."""
    batches = {
        f"data_batch_{i}": {"data": pixels(2, 3072, seed=i), "labels": [i, 9 - i], "filenames": ["a", "b"]}
        for i in range(1, 6)
    }
    folder = tmp_path / "cifar-10-batches-py"
    monkeypatch.setattr(datasets.CIFAR10, "train_list", write_cifar(folder, batches))
    test = {"test_batch": {"data": pixels(1, 3072, seed=9), "labels": [4]}}
    monkeypatch.setattr(datasets.CIFAR10, "test_list", write_cifar(folder, test))
    ((name, digest),) = write_cifar(folder, {"batches.meta": {"label_names": NAMES}})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


@pytest.mark.filterwarnings("ignore:dtype")
def test_cifar10_batches_are_read_in_order_with_planes_as_channels(cifar10: Path) -> None:
    task = load("cifar10", cifar10)
    assert task.train.images.shape == (10, 3, 32, 32)
    assert task.train.images.flags.c_contiguous
    for i in range(1, 6):
        expected = pixels(2, 3072, seed=i).reshape(2, 3, 32, 32)
        assert np.array_equal(task.train.images[2 * i - 2 : 2 * i], expected)
    assert task.train.labels.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    assert task.test.labels.tolist() == [4]
    assert task.classes == tuple(NAMES)
    assert "verified" in task.test.note


@pytest.mark.filterwarnings("ignore:dtype")
def test_cifar10_in_a_folder_of_another_name_is_read(cifar10: Path) -> None:
    digest = load("cifar10", cifar10).train.digest()
    (cifar10 / "cifar-10-batches-py").rename(cifar10 / "mine")
    assert load("cifar10", cifar10 / "mine").train.digest() == digest


@pytest.mark.filterwarnings("ignore:dtype")
def test_cifar100_has_fine_labels_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    names = [f"kind {i}" for i in range(100)]
    for part, labels in (("train", [99, 0]), ("test", [50, 51])):
        content = {part: {"data": pixels(2, 3072), "fine_labels": labels, "coarse_labels": [1, 2]}}
        monkeypatch.setattr(datasets.CIFAR100, f"{part}_list", write_cifar(folder, content))
    ((name, digest),) = write_cifar(folder, {"meta": {"fine_label_names": names, "coarse_label_names": ["x"]}})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": digest})
    task = load("cifar100", tmp_path)
    assert task.train.labels.tolist() == [99, 0]
    assert task.test.labels.tolist() == [50, 51]
    assert task.classes == tuple(names)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (self.mark.write_text, ("opened",))


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_cifar_file_with_another_checksum_is_named_and_never_unpickled(cifar10: Path, name: str) -> None:
    mark = cifar10 / "mark"
    path = cifar10 / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(DataError, match=rf"{name} is not the published file") as caught:
        load("cifar10", cifar10)
    assert not mark.exists()
    assert "archive" in caught.value.hint
    path.unlink()
    with pytest.raises(DataError, match=rf"does not contain {name}"):
        load("cifar10", cifar10)


def test_published_checksums_are_enforced(tmp_path: Path) -> None:
    write_cifar(tmp_path, {name: {"data": pixels(1, 3072), "labels": [0]} for name, _ in datasets.CIFAR10.train_list})
    with pytest.raises(DataError, match=r"data_batch_1 is not the published file.*c99cafc152244af753f735de768cd75f"):
        load("cifar10", tmp_path)
    scipy_io.savemat(tmp_path / "train_32x32.mat", {"X": pixels(32, 32, 3, 1), "y": np.array([[1]], np.uint8)})
    with pytest.raises(DataError, match=r"train_32x32\.mat is not the published file"):
        load("svhn", tmp_path)


# ---- SVHN


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table = dict(datasets.SVHN.split_list)
    for part, labels in (("train", [10, 1, 9]), ("test", [5])):
        path = tmp_path / f"{part}_32x32.mat"
        y = np.array(labels, np.uint8)[:, None]
        scipy_io.savemat(path, {"X": pixels(32, 32, 3, len(labels)), "y": y}, do_compression=True)
        table[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    return tmp_path


def test_svhn_axes_are_transposed_and_label_10_is_class_0(svhn: Path) -> None:
    task = load("svhn", svhn)
    assert np.array_equal(task.train.images, pixels(32, 32, 3, 3).transpose(3, 2, 0, 1))
    assert task.train.images.flags.c_contiguous
    assert task.train.labels.tolist() == [0, 1, 9]
    assert task.test.labels.tolist() == [5]
    assert task.classes == tuple("0123456789")


def test_error_about_a_missing_or_damaged_svhn_file_names_it(svhn: Path) -> None:
    path = svhn / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_32x32\.mat is not the published file"):
        load("svhn", svhn)
    path.unlink()
    with pytest.raises(DataError, match=r"does not contain test_32x32\.mat"):
        load("svhn", svhn)


@pytest.mark.parametrize(("package", "name"), [("torchvision", "svhn"), ("scipy", "svhn")])
def test_error_about_a_missing_package_names_its_extra(
    svhn: Path, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*\[vision\]"):
        load(name, svhn)


def test_official_files_take_precedence(mnist: Path) -> None:
    (mnist / "train.parquet").write_bytes(b"not looked at")
    assert "verified" in load("mnist", mnist).train.note


def test_set_size_limit_applies_to_idx_files(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "LARGEST_SET", 59)
    with pytest.raises(DataError, match="5 images of 4 x 3"):
        load("mnist", mnist)
