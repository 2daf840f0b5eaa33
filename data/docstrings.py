"""The text task ``docstrings``: classify docstring sentences by the installed package they come from.

It needs no data set. Sentences are split by module, so train and dev share neither a module nor a sentence. Sentences
that name one of the packages are left out.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

from ..core.errors import DataError
from ..core.packages import install_command
from ..core.seeds import Seed
from .prose import docstrings, same_sentence_key, sentences
from .text import Example, TextTask

#: Folders to skip: tests, and code vendored from other packages.
_SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "externals"}
#: Larger files, in bytes, are skipped: they take long to parse for the sentences that they yield.
_LARGEST_FILE = 200_000
#: Files with fewer than one triple quote per this many bytes are skipped for the same reason.
_BYTES_PER_DOCSTRING = 1500
#: Sentences taken from one module at most, so that no single module dominates a class.
_MODULE_LIMIT = 40
#: Factor by which more sentences are collected than needed, because sentences found in two packages are dropped.
_OVERSAMPLING = 1.05


@dataclass(frozen=True, slots=True)
class Source:
    """A package whose docstrings form one class.

    Attributes
    ----------
    label : str
        Name of the class.
    package : str
        Import name; empty for the standard library.
    names : tuple of str
        Words that identify the package in a sentence, in lower case.
    """

    label: str
    package: str
    names: tuple[str, ...]


#: Candidate sources in order of preference; the first installed ones are used.
SOURCES: tuple[Source, ...] = (
    Source("standard library", "", ("python", "cpython", "stdlib")),
    Source("numpy", "numpy", ("numpy", "np", "ndarray")),
    Source("torch", "torch", ("torch", "pytorch", "libtorch")),
    Source("transformers", "transformers", ("transformers", "huggingface", "hugging")),
    Source("scikit-learn", "sklearn", ("sklearn", "scikit")),
    Source("scipy", "scipy", ("scipy",)),
    Source("sympy", "sympy", ("sympy",)),
    Source("networkx", "networkx", ("networkx", "nx")),
    Source("pandas", "pandas", ("pandas", "pd")),
    Source("SQLAlchemy", "sqlalchemy", ("sqlalchemy",)),
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and its module (a path relative to the package's folder)."""

    text: str
    module: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences by class; ``train[c]`` and ``dev[c]`` share no module, and no sentence occurs twice."""

    labels: tuple[str, ...]
    train: tuple[tuple[Sentence, ...], ...]
    dev: tuple[tuple[Sentence, ...], ...]


def installed(sources: Sequence[Source] = SOURCES) -> dict[str, Path]:
    """Folders of the installed sources, by label; packages are located without importing them."""
    found: dict[str, Path] = {}
    for source in sources:
        if not source.package:
            found[source.label] = Path(sysconfig.get_path("stdlib"))
        elif (spec := PathFinder.find_spec(source.package)) and spec.submodule_search_locations:
            found[source.label] = Path(spec.submodule_search_locations[0])
    return found


def build_corpus(
    seed: Seed,
    *,
    classes: int = 5,
    train_size: int = 800,
    dev_size: int = 200,
    folders: dict[str, Path] | None = None,
) -> Corpus:
    """Collect sentences from the first ``classes`` installed sources that have enough of them.

    Parameters
    ----------
    seed : Seed
        Seed of the order in which modules are read, and of the split into train and dev.
    classes : int
        Number of classes; fewer are used if packages are missing, but at least 3.
    train_size, dev_size : int
        Sentences per class. All classes are reduced to the size of the smallest, which is at least half of this.
    folders : dict of str to Path, optional
        Folders of the sources by label; by default :func:`installed`.

    Raises
    ------
    DataError
        Fewer than 3 sources have enough sentences.
    """
    gathered: dict[str, _Gathered] = {}
    for label, folder in (installed() if folders is None else folders).items():
        if len(gathered) == classes:
            break
        found = _gather(folder, seed.child(label), int(train_size * _OVERSAMPLING), int(dev_size * _OVERSAMPLING))
        if 2 * len(found.train) >= train_size and 2 * len(found.dev) >= dev_size:
            gathered[label] = found
    if len(gathered) < 3:
        raise DataError(
            f"the docstring task needs 3 installed packages with enough sentences, found {len(gathered)}",
            hint=f"{install_command('demo')} installs numpy, torch, transformers and scikit-learn",
        )
    parts = _without_shared(list(gathered.values()))
    train = min(train_size, *(len(part.train) for part in parts))
    dev = min(dev_size, *(len(part.dev) for part in parts))
    return Corpus(
        tuple(gathered),
        tuple(tuple(p.train[:train]) for p in parts),
        tuple(tuple(p.dev[:dev]) for p in parts),
    )


def load_docstrings(seed: Seed, *, classes: int = 5, train_size: int = 800, dev_size: int = 200) -> TextTask:
    """Build the corpus as a text task in shuffled order; parameters and errors as for :func:`build_corpus`.

    Sentences depend on the versions of the installed packages, and the classes on which are installed: programs of one
    run compare ``TextTask.labels`` before they start.
    """
    corpus = _corpus(seed, classes, train_size, dev_size)
    train, dev = _shuffled(corpus.train, seed.child("train")), _shuffled(corpus.dev, seed.child("dev"))
    return TextTask("docstrings", corpus.labels, train, dev, "accuracy")


@lru_cache(maxsize=1)
def _corpus(seed: Seed, classes: int, train_size: int, dev_size: int) -> Corpus:
    # Cached because parsing the sources takes seconds.
    return build_corpus(seed, classes=classes, train_size=train_size, dev_size=dev_size)


def _shuffled(by_class: Sequence[Sequence[Sentence]], seed: Seed) -> list[Example]:
    # A shard takes every n-th sentence; in a regular order it could contain a single class.
    examples = [Example(s.text, None, label) for label, found in enumerate(by_class) for s in found]
    return [examples[i] for i in seed.numpy().permutation(len(examples))]


@dataclass(frozen=True, slots=True)
class _Gathered:
    train: list[Sentence]
    dev: list[Sentence]


def _gather(folder: Path, seed: Seed, train_size: int, dev_size: int) -> _Gathered:
    """Collect distinct sentences of a package, module by module in a seeded order: dev first, then train."""
    modules = sorted(_modules(folder))
    seen: set[str] = set()
    found = _Gathered([], [])
    for index in seed.numpy().permutation(len(modules)):
        if len(found.dev) < dev_size:
            found.dev.extend(_module_sentences(folder, modules[index], seen))
        elif len(found.train) < train_size:
            found.train.extend(_module_sentences(folder, modules[index], seen))
        else:
            break
    return found


def _modules(folder: Path) -> Iterator[str]:
    for root, subfolders, files in os.walk(folder):
        subfolders[:] = [s for s in subfolders if s not in _SKIPPED and "vendor" not in s]
        for name in files:
            if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _module_sentences(folder: Path, module: str, seen: set[str]) -> list[Sentence]:
    path = folder / module
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return []
        source = path.read_bytes()
    except OSError:
        return []
    if source.count(b'"""') * _BYTES_PER_DOCSTRING < len(source):
        return []
    found: list[Sentence] = []
    for docstring in docstrings(source):
        for text in sentences(docstring):
            key = same_sentence_key(text)
            if key not in seen and not _GIVEAWAY.search(text):
                seen.add(key)
                found.append(Sentence(text, module))
    return found[:_MODULE_LIMIT]


def _without_shared(parts: Sequence[_Gathered]) -> list[_Gathered]:
    """Drop sentences that occur in more than one package, because their class is ambiguous."""
    count = Counter(same_sentence_key(s.text) for part in parts for s in (*part.train, *part.dev))

    def unique(found: list[Sentence]) -> list[Sentence]:
        return [s for s in found if count[same_sentence_key(s.text)] == 1]

    return [_Gathered(unique(part.train), unique(part.dev)) for part in parts]


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern of the names and, for names of three letters or more, of words that start with them."""
    return re.compile("|".join(rf"\b{n}\b" if len(n) < 3 else rf"\b{n}" for n in names), re.IGNORECASE)


_GIVEAWAY = _any_of([name for source in SOURCES for name in source.names])
