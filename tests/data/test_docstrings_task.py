"""The docstring task: sources, sentence extraction, splits and balance."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from farshore.core.errors import DataError
from farshore.core.seeds import Seed
from farshore.data.docstrings import SOURCES, Corpus, build_corpus, installed, load_docstrings
from farshore.data.prose import docstrings, same_sentence_key, sentences

WORDS = ["river", "stone", "window", "garden", "engine", "letter", "bridge", "candle", "forest", "mirror"]


def write_package(folder: Path, modules: int, start: int, per_module: int = 6) -> Path:
    """Write a package whose sentences differ from those of other calls."""
    rng = np.random.default_rng(start)
    for m in range(modules):
        lines = ["import does_not_exist_anywhere\nraise SystemExit('never run')\n"]
        for f in range(per_module):
            text = " ".join(rng.choice(WORDS, 7))
            lines.append(f'def f{f}():\n    """Return the {text} of {WORDS[start]}s."""\n')
        path = folder / f"part{m % 3}" / f"m{m}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    return {f"p{i}": write_package(tmp_path / f"p{i}", 20, i) for i in range(4)}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """A corpus from the packages of this environment, at about a third of the default size."""
    return build_corpus(Seed(0), train_size=240, dev_size=60)


def test_train_and_dev_share_no_module_and_no_sentence(corpus: Corpus) -> None:
    for train, dev in zip(corpus.train, corpus.dev, strict=True):
        assert not {s.module for s in train} & {s.module for s in dev}
    keys = Counter(same_sentence_key(s.text) for part in (corpus.train, corpus.dev) for c in part for s in c)
    assert set(keys.values()) == {1}


def test_classes_are_balanced(corpus: Corpus) -> None:
    assert 3 <= len(corpus.labels) <= 5
    assert len({len(c) for c in corpus.train}) == len({len(c) for c in corpus.dev}) == 1
    assert 120 <= len(corpus.train[0]) <= 240
    assert 30 <= len(corpus.dev[0]) <= 60


def test_no_sentence_names_a_package(corpus: Corpus) -> None:
    names = [name for source in SOURCES for name in source.names if len(name) > 2]
    for sentence in (s for part in (corpus.train, corpus.dev) for c in part for s in c):
        words = sentence.text.lower().replace("-", " ").replace("(", " ").split()
        assert not [w for w in words if w.strip(".,;:'\")").startswith(tuple(names))], sentence


def test_sentences_are_short_plain_english(corpus: Corpus) -> None:
    for sentence in (s for part in (corpus.train, corpus.dev) for c in part for s in c):
        text = sentence.text
        assert text.isascii()
        assert 5 <= len(text.split()) <= 40
        assert not set(text) & set("`_=<>[]{}/\\@#|*0123456789\n"), text


def test_task_depends_on_packages_and_seed_only(packages: dict[str, Path]) -> None:
    first = build_corpus(Seed(1), train_size=40, dev_size=10, folders=packages)
    assert build_corpus(Seed(1), train_size=40, dev_size=10, folders=packages) == first
    assert build_corpus(Seed(2), train_size=40, dev_size=10, folders=packages) != first


def test_no_package_is_imported(packages: dict[str, Path]) -> None:
    before = set(sys.modules)
    assert build_corpus(Seed(1), train_size=40, dev_size=10, folders=packages).labels == (
        "p0",
        "p1",
        "p2",
        "p3",
    )
    installed()
    assert not (set(sys.modules) - before) & {"torch", "transformers", "sklearn", "scipy", "pandas"}


def test_missing_packages_and_those_with_too_few_sentences_are_skipped(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    packages = {"gone": tmp_path / "gone", "poor": write_package(tmp_path / "poor", 2, 9), **packages}
    corpus = build_corpus(Seed(1), classes=3, train_size=40, dev_size=10, folders=packages)
    assert corpus.labels == ("p0", "p1", "p2")


def test_fewer_than_three_packages_are_refused_with_a_hint(packages: dict[str, Path]) -> None:
    two = dict(list(packages.items())[:2])
    with pytest.raises(DataError, match="found 2") as caught:
        build_corpus(Seed(1), train_size=40, dev_size=10, folders=two)
    assert "[demo]" in caught.value.hint


def test_a_sentence_of_two_packages_is_dropped_from_both(packages: dict[str, Path]) -> None:
    shared = "Sentence that stands in two of these packages."
    for label in ("p0", "p1"):
        for module in sorted(packages[label].rglob("*.py")):
            module.write_text(module.read_text() + f'class C:\n    """{shared}"""\n')
    corpus = build_corpus(Seed(1), train_size=40, dev_size=10, folders=packages)
    assert shared not in {s.text for part in (corpus.train, corpus.dev) for c in part for s in c}


def test_sources_that_do_not_parse_or_decode_are_skipped(packages: dict[str, Path]) -> None:
    (packages["p0"] / "broken.py").write_text('def f(:\n    """Return the first of all things here."""\n')
    (packages["p0"] / "bytes.py").write_bytes(b'"""Caf\xe9 of the many open doors."""\n\x00')
    assert build_corpus(Seed(1), train_size=40, dev_size=10, folders=packages).labels[0] == "p0"


def test_test_folders_are_not_read(packages: dict[str, Path]) -> None:
    write_package(packages["p0"] / "tests", 20, 7)
    corpus = build_corpus(Seed(1), train_size=80, dev_size=20, folders=packages)
    assert not [s for s in (*corpus.train[0], *corpus.dev[0]) if s.module.startswith("tests/")]


def test_only_prose_before_the_first_section_is_extracted() -> None:
    text = """Compute the mean of all given numbers. It uses the array `x` as it is.
    Call ``f(x)`` to see what happens next. See https://a.example for all of this.

    A second paragraph is prose as well, with ``axis`` in it.

    Parameters
    ----------
    x : array
        This line is about a parameter and not prose.

    Anything after the first section is left out here.
    """
    assert list(sentences(next(docstrings(f'"""{text}"""'.encode())))) == [
        "Compute the mean of all given numbers.",
        "It uses the array x as it is.",
        "A second paragraph is prose as well, with axis in it.",
    ]


def test_docstrings_of_nested_definitions_are_found_but_no_other_strings() -> None:
    source = b'''"""One."""
x = """No."""
f = lambda: """No."""
class A:
    """Two."""
    if x:
        async def g(self):
            """Three."""
try:
    pass
except E:
    def h():
        "Four."
'''
    assert sorted(docstrings(source)) == ["Four.", "One.", "Three.", "Two."]


def test_every_shard_has_every_class() -> None:
    task = load_docstrings(Seed(0), train_size=100, dev_size=40)
    assert task.metric == "accuracy"
    for count in (2, 3, len(task.labels)):
        for i in range(count):
            assert {e.label for e in task.train[i::count]} == set(range(len(task.labels)))


@pytest.mark.slow
def test_the_default_task_is_learnable_not_trivial_and_built_quickly() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    start = time.process_time()
    task = load_docstrings(Seed(0))
    assert time.process_time() - start < 10
    words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    train = words.fit_transform([e.text for e in task.train])
    model = linear.LogisticRegression(C=10, max_iter=300).fit(train, [e.label for e in task.train])
    accuracy = model.score(words.transform([e.text for e in task.dev]), [e.label for e in task.dev])
    assert 2 / len(task.labels) < accuracy < 0.9


def test_sources_are_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of a simulation are threads, and the parser of Python 3.11 is not thread-safe."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    from farshore.data import prose

    inside, most, parse = 0, 0, prose.ast.parse

    def watched(source: bytes) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return parse(source)

    with monkeypatch.context() as patched, ThreadPoolExecutor(4) as pool:
        patched.setattr(prose.ast, "parse", watched)
        found = list(pool.map(lambda _: list(prose.docstrings(b'"A sentence."')), range(8)))
    assert found == [["A sentence."]] * 8
    assert most == 1
