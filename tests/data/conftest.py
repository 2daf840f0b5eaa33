"""Fixtures of the data tests: folders of real data sets, and a tokenizer without dependencies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def data_folder(name: str) -> Path:
    """The folder of a real data set: $FARSHORE_DATA/name, or ../shared/data/name next to the repository."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FARSHORE_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} files in {folder}; set FARSHORE_DATA to the folder that contains {name}/")
    return folder


@pytest.fixture
def glue_folder() -> Path:
    return data_folder("glue")


@pytest.fixture
def cifar10_folder() -> Path:
    return data_folder("cifar10")


class WordTokenizer:
    """Splits at spaces into [1] words [2] (words [2]); the id of a word is 3 + its length."""

    pad_token_id: int | None = 0
    eos_token_id: int | None = 2

    def __call__(self, text: list[str], text_pair: list[str] | None = None, **options: Any) -> Any:
        assert options["truncation"] is True
        ids, types = [], []
        for i, first in enumerate(text):
            row = [1, *(3 + len(w) for w in first.split()), 2]
            kinds = [0] * len(row)
            if text_pair is not None:
                second = [*(3 + len(w) for w in text_pair[i].split()), 2]
                row, kinds = row + second, kinds + [1] * len(second)
            ids.append(row[: options["max_length"]])
            types.append(kinds[: options["max_length"]])
        return {"input_ids": ids, "token_type_ids": types}


@pytest.fixture
def word_tokenizer() -> WordTokenizer:
    return WordTokenizer()
