"""A task that every machine already has: tell which installed package a docstring's sentence comes from.

Sentences are split by module, so that train and dev share neither a module nor a sentence, and those that
name one of the packages are left out, so that the answer is never in the question.
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
from ..core.seeds import Seed
from .prose import docstrings, same_sentence_key, sentences
from .text import Example, TextTask

#: Folders whose docstrings are not the package's own work or not meant to be read.
_SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "externals"}
#: Larger files take long to parse for what they yield.
_LARGEST_FILE = 200_000
#: So do files with fewer triple quotes than one in this many bytes: most of a model's code is not prose.
_SPARSEST = 1500
#: A module gives at most this many sentences, so that no single one makes up a class.
_MODULE_LIMIT = 40
#: Sentences gathered beyond what is needed: some turn out to stand in two packages and are dropped.
_SPARE = 1.05


@dataclass(frozen=True, slots=True)
class Source:
    """A package whose docstrings make up one class.

    Attributes
    ----------
    label : str
        Name of the class.
    package : str
        Import name; empty for the standard library.
    names : tuple of str
        What gives it away in a sentence, in lower case.
    """

    label: str
    package: str
    names: tuple[str, ...]


#: In order of preference; the first that are installed are used.
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
    """A sentence and the module it stands in (a path relative to the package's folder)."""

    text: str
    module: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences by class; ``train[c]`` and ``dev[c]`` share no module, and no sentence stands twice."""

    labels: tuple[str, ...]
    train: tuple[tuple[Sentence, ...], ...]
    dev: tuple[tuple[Sentence, ...], ...]


def installed(sources: Sequence[Source] = SOURCES) -> dict[str, Path]:
    """Folders of those sources that are installed, by label; no package is imported to find out."""
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
    """Gather sentences from the first ``classes`` installed sources that have enough of them.

    Parameters
    ----------
    seed : Seed
        Decides which modules are read, and which of them are for dev.
    classes : int
        Classes wanted; at least 3 are needed.
    train_size, dev_size : int
        Sentences per class; all classes get as many as the poorest has, at least half of this.
    folders : dict of str to Path, optional
        Where the sources are, by label; the default is :func:`installed`.

    Raises
    ------
    DataError
        Fewer than 3 sources have enough sentences.
    """
    gathered: dict[str, _Gathered] = {}
    for label, folder in (installed() if folders is None else folders).items():
        if len(gathered) == classes:
            break
        found = _gather(folder, seed.child(label), int(train_size * _SPARE), int(dev_size * _SPARE))
        if 2 * len(found.train) >= train_size and 2 * len(found.dev) >= dev_size:
            gathered[label] = found
    if len(gathered) < 3:
        raise DataError(
            f"the docstring task needs 3 installed packages with enough sentences, and found {len(gathered)}",
            hint="pip install 'farshore[demo]', which brings numpy, torch, transformers and scikit-learn",
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
    """The corpus as a task in a shuffled order; parameters and errors as for :func:`build_corpus`.

    Machines with other packages, or other versions of them, get other sentences, and with fewer packages
    fewer classes: programs that share a run compare ``TextTask.labels`` before they start.
    """
    corpus = _corpus(seed, classes, train_size, dev_size)
    train, dev = _shuffled(corpus.train, seed.child("train")), _shuffled(corpus.dev, seed.child("dev"))
    return TextTask("docstrings", corpus.labels, train, dev, "accuracy")


@lru_cache(maxsize=1)
def _corpus(seed: Seed, classes: int, train_size: int, dev_size: int) -> Corpus:
    # Parsing the sources takes seconds, and a process that trains twice needs them twice.
    return build_corpus(seed, classes=classes, train_size=train_size, dev_size=dev_size)


def _shuffled(by_class: Sequence[Sequence[Sentence]], seed: Seed) -> list[Example]:
    # In any regular order, taking every n-th sentence for a shard could leave a node with one class.
    examples = [Example(s.text, None, label) for label, found in enumerate(by_class) for s in found]
    return [examples[i] for i in seed.numpy().permutation(len(examples))]


@dataclass(frozen=True, slots=True)
class _Gathered:
    train: list[Sentence]
    dev: list[Sentence]


def _gather(folder: Path, seed: Seed, train_size: int, dev_size: int) -> _Gathered:
    """Distinct sentences of a package, module by module in a seeded order: for dev first, then for train."""
    modules = sorted(_modules(folder))
    seen: set[str] = set()
    found = _Gathered([], [])
    for place in seed.numpy().permutation(len(modules)):
        if len(found.dev) < dev_size:
            found.dev.extend(_module_sentences(folder, modules[place], seen))
        elif len(found.train) < train_size:
            found.train.extend(_module_sentences(folder, modules[place], seen))
        else:
            break
    return found


def _modules(folder: Path) -> Iterator[str]:
    for place, below, files in os.walk(folder):
        below[:] = [b for b in below if b not in _SKIPPED and "vendor" not in b]
        for name in files:
            if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _module_sentences(folder: Path, module: str, seen: set[str]) -> list[Sentence]:
    path = folder / module
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return []
        source = path.read_bytes()
    except OSError:
        return []
    if source.count(b'"""') * _SPARSEST < len(source):
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
    """Drop what stands in more than one package: it has no right answer."""
    count = Counter(same_sentence_key(s.text) for part in parts for s in (*part.train, *part.dev))

    def alone(found: list[Sentence]) -> list[Sentence]:
        return [s for s in found if count[same_sentence_key(s.text)] == 1]

    return [_Gathered(alone(part.train), alone(part.dev)) for part in parts]


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """Matches the names and, if longer than two letters, words that begin with them (``torchelastic``)."""
    return re.compile("|".join(rf"\b{n}\b" if len(n) < 3 else rf"\b{n}" for n in names), re.IGNORECASE)


_GIVEAWAY = _any_of([name for source in SOURCES for name in source.names])
