"""Fixtures: benchmark scripts as modules, and a small model and data set to run them in full."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = ["good", "fine", "great", "bad", "poor", "dull", *(f"w{i}" for i in range(40))]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """``script(name)`` imports ``benchmarks/<name>.py`` with its folder on ``sys.path``."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@dataclass(frozen=True)
class Setting:
    """Folders of a tiny transformer and of GLUE files with an easy SST-2."""

    model: Path
    glue: Path


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A BERT with 4 blocks and hidden size 32, and 200 sentences whose class is determined by one word."""
    folder = tmp_path_factory.mktemp("setting")
    return Setting(_model(folder / "model"), _glue(folder / "glue"))


def _model(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    return folder


def _glue(folder: Path) -> Path:
    rng = random.Random(1)
    (folder / "SST-2").mkdir(parents=True)
    for name, count in (("train", 200), ("dev", 40)):
        lines = ["sentence\tlabel"]
        for _ in range(count):
            label = rng.randrange(2)
            words = [rng.choice(WORDS[6:]) for _ in range(rng.randint(2, 12))]
            words.insert(rng.randrange(len(words)), rng.choice(WORDS[3 * (1 - label) : 3 * (2 - label)]))
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder
