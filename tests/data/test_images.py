"""Reading images from Parquet files and class folders: exact pixels, and errors that name the file and have a hint."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import DataError, MissingExtraError
from farshore.core.seeds import Seed
from farshore.data import image_set
from farshore.data.images import load_images

Image = pytest.importorskip("PIL.Image")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SEED = Seed(0)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def find_at(folder: Path) -> Callable[[str], Path]:
    return lambda name: folder


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def encoded(image: np.ndarray[Any, Any], kind: str = "PNG", mode: str = "") -> bytes:
    file = io.BytesIO()
    made = Image.fromarray(image)
    (made.convert(mode) if mode else made).save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[Any], **options: Any) -> None:
    image, label = options.get("image", "img"), options.get("label", "label")
    column = pa.array(
        [{"bytes": b, "path": None} for b in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({image: column, label: pa.array(labels, options.get("kind", pa.int64()))})
    if names := options.get("names"):
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Twelve training and four test images, lossless."""
    for part, count in (("train", 12), ("test", 4)):
        images = [encoded(i) for i in pixels(count, 6, 5, 3)]
        write_parquet(tmp_path / f"{part}.parquet", images, [i % 10 for i in range(count)])
    return tmp_path


# ---- Parquet


def test_parquet_images_are_read_exactly_and_in_file_order(parquet: Path) -> None:
    task = load_images("cifar10", find_at(parquet), SEED)
    assert np.array_equal(task.train.images, pixels(12, 6, 5, 3).transpose(0, 3, 1, 2))
    assert task.train.labels.tolist() == [i % 10 for i in range(12)]
    assert len(task.test.labels) == 4
    assert task.classes == CLASSES
    assert "lossless" in task.train.note


def test_note_gives_the_number_of_jpeg_images_as_lossy(parquet: Path) -> None:
    images = [encoded(i, "JPEG" if n < 3 else "PNG") for n, i in enumerate(pixels(12, 6, 5, 3))]
    write_parquet(parquet / "train.parquet", images, [0] * 12)
    task = load_images("cifar10", find_at(parquet), SEED)
    assert "lossy re-encodings: 3 of 12 images are JPEG" in task.train.note
    assert "lossless" in task.test.note


def test_parquet_parts_in_a_subfolder_are_found(tmp_path: Path) -> None:
    images = [encoded(i) for i in pixels(4, 8, 8)]
    data = tmp_path / "data"
    for part in range(2):
        name = f"train-{part:05}-of-00002.parquet"
        write_parquet(data / name, images[2 * part : 2 * part + 2], [part, part], image="image", label="fine_label")
    write_parquet(data / "test-00000-of-00001.parquet", images[:1], [99], image="image", label="fine_label")
    task = load_images("cifar100", find_at(tmp_path), SEED)
    assert np.array_equal(task.train.images[:, 0], pixels(4, 8, 8))
    assert task.train.labels.tolist() == [0, 0, 1, 1]
    assert task.classes[99] == "99"
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"part 1 of the 2 files like .* is missing"):
        load_images("cifar100", find_at(tmp_path), SEED)


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train.parquet", [encoded(pixels(8, 8))], [0])
    with pytest.raises(DataError, match="large, small") as caught:
        load_images("svhn", find_at(tmp_path), SEED)
    assert "one of these" in caught.value.hint


def test_class_names_are_read_from_the_metadata(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(8, 8))] * 2, [0, 1], names=["oak", "elm", "ash"])
    assert load_images("trees", find_at(tmp_path), SEED).classes == ("oak", "elm", "ash")


def test_classes_of_a_published_data_set_get_the_published_order(tmp_path: Path) -> None:
    names = list(reversed(CLASSES))
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(8, 8))] * 3, [0, 1, 9], names=names)
    task = load_images("cifar10", find_at(tmp_path), SEED)
    assert task.classes == CLASSES
    assert task.train.labels.tolist() == task.test.labels.tolist() == [9, 8, 0]


def test_train_and_test_with_different_class_orders_are_refused(tmp_path: Path) -> None:
    for part, names in (("train", ["oak", "elm"]), ("test", ["elm", "oak"])):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(8, 8))] * 2, [0, 1], names=names)
    with pytest.raises(DataError, match="another order"):
        load_images("trees", find_at(tmp_path), SEED)


def test_malformed_metadata_gives_numbers_as_class_names(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encoded(pixels(8, 8))] * 2, [0, 1], names={"0": "oak"})
    assert load_images("trees", find_at(tmp_path), SEED).classes == ("0", "1")


def damaged(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None  # type: ignore[func-returns-value]


def rows(images: list[bytes | None], labels: list[Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: write_parquet(path, images, labels, **options)


GOOD = encoded(pixels(6, 5, 3))


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (damaged(b"no parquet"), "not a Parquet file"),
        (damaged(b""), "not a Parquet file"),
        (rows([GOOD, b"no image"], [0, 0]), "row 1: not a PNG"),
        (rows([GOOD, GOOD[:-30]], [0, 0]), "row 1: not a PNG"),
        (rows([GOOD, None], [0, 0]), "row 1: no image bytes"),
        (rows([GOOD, GOOD], [0, None]), "row 1: invalid label None"),
        (rows([GOOD, GOOD], [0, -1]), "row 1: invalid label -1"),
        (rows([GOOD, GOOD], [0, 10]), "label 10"),
        (rows([GOOD, encoded(pixels(5, 6, 3))], [0, 0]), "row 1: an image of shape"),
        (rows([GOOD, encoded(pixels(6, 5))], [0, 0]), "row 1: an image of shape"),
        (rows([encoded(pixels(5, 6, 3))], [0]), "differ"),
        (rows([encoded(pixels(6, 5, 3), "GIF")], [0]), "row 0: not a PNG"),
        (rows([encoded(pixels(6, 5).astype(np.uint16) * 9)], [0]), "row 0: unsupported pixel mode I;16"),
        (rows([], []), "0 images"),
        (rows([GOOD], [0], image="picture"), "img or image"),
        (rows([GOOD], [0], label="target"), "label or fine_label"),
        (rows([GOOD], ["0"], kind=pa.string()), "label is string"),
        (lambda p: pq.write_table(pa.table({"img": [b"x"], "label": [0]}), p), "img is binary"),
        (rows([GOOD], [0], names=["a", "b"]), "2 classes"),
    ],
)
def test_error_about_a_bad_parquet_file_names_it_and_has_a_hint(
    parquet: Path, write: Callable[[Path], None], word: str
) -> None:
    write(parquet / "train.parquet")
    with pytest.raises(DataError, match=word) as caught:
        load_images("cifar10", find_at(parquet), SEED)
    assert str(parquet) in caught.value.message
    assert caught.value.hint


def test_parquet_file_with_damaged_content_is_refused(parquet: Path) -> None:
    path = parquet / "train.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet"):
        load_images("cifar10", find_at(parquet), SEED)


def test_error_about_a_missing_test_part_names_it(parquet: Path) -> None:
    (parquet / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"does not contain test\*\.parquet"):
        load_images("cifar10", find_at(parquet), SEED)


# ---- size limits


def test_oversized_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(np.zeros((8, 2000), np.uint8))
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [bomb], [0])

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "convert", never)
    with pytest.raises(DataError, match="8 x 2000") as caught:
        load_images("mine", find_at(tmp_path), SEED)
    assert "scale" in caught.value.hint


def test_oversized_set_is_refused_before_memory_is_allocated(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 12 * 3 * 6 * 5
    monkeypatch.setattr(image_set, "LARGEST_SET", whole)
    load_images("cifar10", find_at(parquet), SEED)
    monkeypatch.setattr(image_set, "LARGEST_SET", whole - 1)
    monkeypatch.setattr(np, "empty", lambda *a, **k: pytest.fail("memory was allocated"))
    with pytest.raises(DataError, match="12 images of 3 x 6 x 5"):
        load_images("cifar10", find_at(parquet), SEED)


# ---- folders


def write_folder(folder: Path, classes: tuple[str, ...], count: int = 2) -> Path:
    for part in ("train", "test"):
        for n, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((4, 4, 3), 10 * n + i, np.uint8)
                (folder / part / name / f"{i}.png").write_bytes(encoded(image))
    return folder


def test_numeric_class_folders_are_ordered_by_number(tmp_path: Path) -> None:
    task = load_images("mine", find_at(write_folder(tmp_path, ("0", "1", "10", "11", "2"))), SEED)
    assert task.classes == ("0", "1", "2", "10", "11")
    # The third folder written is '10', class 3, with gray values 20 and 21.
    assert {int(i) for i in task.train.images[task.train.labels == 3][:, 0, 0, 0]} == {20, 21}


def test_class_folders_with_published_names_get_the_published_order(tmp_path: Path) -> None:
    task = load_images("svhn", find_at(write_folder(tmp_path, tuple("9876543210"))), SEED)
    assert task.classes == tuple("0123456789")
    assert np.all(task.train.images[task.train.labels == 9][:, 0, 0, 0] < 10)


def test_folders_without_images_are_no_classes_and_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"))
    for name in ("empty", ".hidden", "__MACOSX"):
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "train" / "__MACOSX" / "x.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"thumbnails")
    task = load_images("mine", find_at(tmp_path), SEED)
    assert task.classes == ("a", "b")
    assert len(task.train.images) == 4
    assert "no classes: empty" in task.train.note


@pytest.mark.parametrize("labels", [[1, 2, 3], [7, 1_000_000_000, 2_000_000_000]])
def test_labels_of_an_unknown_set_are_numbered_from_0(tmp_path: Path, labels: list[int]) -> None:
    image = encoded(pixels(4, 4, 3))
    write_parquet(tmp_path / "train.parquet", [image] * 3, labels)
    write_parquet(tmp_path / "test.parquet", [image], labels[1:2])
    task = load_images("mine", find_at(tmp_path), SEED)
    assert task.classes == tuple(map(str, labels))
    assert task.train.labels.tolist() == [0, 1, 2]
    assert task.test.labels.tolist() == [1]
    assert "numbered from 0 to 2" in task.train.note


def test_a_label_that_only_the_test_set_has_is_refused(tmp_path: Path) -> None:
    image = encoded(pixels(4, 4, 3))
    write_parquet(tmp_path / "train.parquet", [image] * 2, [0, 1])
    write_parquet(tmp_path / "test.parquet", [image], [2])
    with pytest.raises(DataError, match="test set has the label 2"):
        load_images("mine", find_at(tmp_path), SEED)


def test_gray_images_have_one_channel_and_palette_images_three(tmp_path: Path) -> None:
    gray, color = tmp_path / "gray", tmp_path / "color"
    for part in ("train", "test"):
        for folder, mode in ((gray, "L"), (color, "P")):
            (folder / part / "a").mkdir(parents=True)
            (folder / part / "a" / "0.png").write_bytes(encoded(pixels(4, 4, 3), mode=mode))
    assert load_images("mine", find_at(gray), SEED).train.images.shape == (1, 1, 4, 4)
    assert load_images("mine", find_at(color), SEED).train.images.shape == (1, 3, 4, 4)


def test_error_about_a_bad_folder_names_it_and_has_a_hint(tmp_path: Path) -> None:
    def refused(name: str, change: Callable[[Path], Any], word: str, data: str = "mine") -> None:
        folder = write_folder(tmp_path / name, ("a", "b"))
        change(folder)
        with pytest.raises(DataError, match=word) as caught:
            load_images(data, find_at(folder), SEED)
        assert str(folder) in caught.value.message
        assert caught.value.hint

    refused("text", lambda f: (f / "train" / "a" / "notes.txt").write_text("x"), r"notes\.txt is not an image")
    refused("broken", lambda f: (f / "train" / "a" / "0.png").write_bytes(b"x"), r"a/0\.png: not a PNG")
    refused("extra", lambda f: (f / "test" / "a").rename(f / "test" / "c"), "class c")
    refused("no test", lambda f: (f / "test").rename(f / "dev"), "missing folder .*test")
    refused("few classes", lambda f: None, "2 classes, but 'cifar10' has 10", "cifar10")
    folder = write_folder(tmp_path / "hidden", ("a", "b"))
    (folder / "train" / "a" / ".DS_Store").write_bytes(b"x")
    assert len(load_images("mine", find_at(folder), SEED).train.labels) == 4


# ---- packages


@pytest.mark.parametrize("package", ["pyarrow", "PIL"])
def test_error_about_a_missing_package_names_its_extra(
    parquet: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"\[vision\]") as caught:
        load_images("cifar10", find_at(parquet), SEED)
    assert {"pyarrow": "'pyarrow'", "PIL": "'pillow'"}[package] in caught.value.message


@pytest.mark.slow
@pytest.mark.realdata
def test_real_cifar10_has_its_size_and_is_noted_as_lossy(cifar10_folder: Path) -> None:
    task = load_images("cifar10", find_at(cifar10_folder), SEED)
    assert task.train.images.shape == (50_000, 3, 32, 32)
    assert task.test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(task.train.labels).tolist() == [5000] * 10
    assert np.bincount(task.test.labels).tolist() == [1000] * 10
    assert "lossy re-encodings: 50000 of 50000" in task.train.note
    # The published channel means; swapped channels or axes would change them.
    means = task.train.images.mean(axis=(0, 2, 3)) / 255
    assert np.allclose(means, (0.4914, 0.4822, 0.4465), atol=0.003)
