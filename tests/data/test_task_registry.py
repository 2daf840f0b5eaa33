"""The registry of text tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farshore.core.errors import DataError, NotFoundError
from farshore.core.seeds import Seed
from farshore.data.metrics import METRICS
from farshore.data.registry import TASKS, task


def finder(**folders: Path) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name not in folders:
            raise DataError(f"no data set '{name}'")
        return folders[name]

    return find


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\ngood\t1\n")
    return tmp_path


def test_tasks_have_the_published_default_hyperparameters() -> None:
    rows = {name: (t.max_length, t.epochs, t.metric, t.classes) for name, t in TASKS.items()}
    assert rows["sst2"] == (66, 3, "accuracy", 2)
    assert rows["cola"] == (32, 3, "matthews", 2)
    assert rows["rte"] == (256, 4, "accuracy", 2)
    assert rows["mnli"][3] == 3
    assert {t.metric for t in TASKS.values()} <= set(METRICS)


def test_a_task_is_read_from_a_data_set_of_its_name_or_glue(sst2: Path) -> None:
    assert task("sst2").load(finder(sst2=sst2), Seed(0)).train[0].text == "good"
    assert task("sst2").load(finder(glue=sst2), Seed(0)).train[0].label == 1


def test_error_about_missing_data_says_how_to_provide_them() -> None:
    with pytest.raises(DataError, match="data set 'rte' or 'glue', which is missing") as caught:
        task("rte").load(finder(), Seed(0))
    assert "--data glue=PATH" in caught.value.hint


def test_a_malformed_data_set_is_not_reported_as_missing(sst2: Path) -> None:
    (sst2 / "train.tsv").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 1"):
        task("sst2").load(finder(sst2=sst2), Seed(0))


def test_docstrings_need_no_data_set() -> None:
    def never(name: str) -> Path:
        raise AssertionError(f"asked for {name}")

    loaded = task("docstrings").load(never, Seed(0))
    assert 3 <= len(loaded.labels) <= task("docstrings").classes


def test_error_about_an_unknown_task_suggests_the_closest_name() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'sst2'"):
        task("SST-2")
    with pytest.raises(NotFoundError, match="use one of"):
        task("zzzzzz")


def test_importing_the_data_modules_imports_no_heavy_package() -> None:
    code = (
        "import sys, farshore.data.registry, farshore.data.batches, farshore.data.metrics\n"
        "heavy = 'torch transformers sklearn scipy pandas pyarrow sqlalchemy'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    # -P: do not import a folder of the working directory instead of the package.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
