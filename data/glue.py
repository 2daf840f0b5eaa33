"""Reads GLUE tasks from local TSV files, named and laid out as in the benchmark's archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError, NotFoundError
from .text import Example, TextTask

_BINARY = {"0": 0, "1": 1}
_ENTAILMENT = {"entailment": 0, "not_entailment": 1}


@dataclass(frozen=True, slots=True)
class GlueLayout:
    """File names and columns of a GLUE task.

    Attributes
    ----------
    folder : str
        The task's folder in the archive.
    text, text_pair, label : int
        Column indices; negative ones count from the end. ``text_pair`` is None for single sentences.
    labels : Mapping[str, int]
        Label as written in the file -> class index.
    label_names : tuple of str
        Class names.
    header : tuple of str
        Column names expected in the first line for text, text_pair (if any) and label; empty if there is no header.
    metric : str
        Metric to report, one of the official ones.
    train, dev : str
        File names.
    """

    folder: str
    text: int
    text_pair: int | None
    label: int
    labels: Mapping[str, int]
    label_names: tuple[str, ...]
    header: tuple[str, ...]
    metric: str = "accuracy"
    train: str = "train.tsv"
    dev: str = "dev.tsv"

    @property
    def columns(self) -> tuple[int, ...]:
        """Indices of the columns that are read, in the order of :attr:`header`."""
        return tuple(c for c in (self.text, self.text_pair, self.label) if c is not None)


_PAIR = ("sentence1", "sentence2", "label")
_NLI_NAMES = ("entailment", "not_entailment")

#: Layouts by task name. MNLI's classes have the order of the published split fine-tuning code.
LAYOUTS: dict[str, GlueLayout] = {
    "sst2": GlueLayout("SST-2", 0, None, 1, _BINARY, ("negative", "positive"), ("sentence", "label")),
    "cola": GlueLayout("CoLA", 3, None, 1, _BINARY, ("unacceptable", "acceptable"), (), metric="matthews"),
    "rte": GlueLayout("RTE", 1, 2, 3, _ENTAILMENT, _NLI_NAMES, _PAIR),
    "wnli": GlueLayout("WNLI", 1, 2, 3, _BINARY, ("not_entailment", "entailment"), _PAIR),
    "qnli": GlueLayout("QNLI", 1, 2, 3, _ENTAILMENT, _NLI_NAMES, ("question", "sentence", "label")),
    "mrpc": GlueLayout(
        "MRPC", 3, 4, 0, _BINARY, ("not_equivalent", "equivalent"), ("#1 String", "#2 String", "Quality"),
        train="msr_paraphrase_train.txt", dev="msr_paraphrase_test.txt",
    ),
    "mnli": GlueLayout(
        "MNLI", 8, 9, -1, {"entailment": 0, "contradiction": 1, "neutral": 2},
        ("entailment", "contradiction", "neutral"), ("sentence1", "sentence2", "gold_label"),
        dev="dev_matched.tsv",
    ),
}  # fmt: skip


def load_glue(task: str, directory: Path) -> TextTask:
    """Read a GLUE task.

    Parameters
    ----------
    task : str
        A key of :data:`LAYOUTS`.
    directory : Path
        The folder of all tasks (holding ``SST-2/train.tsv`` …) or of this one (holding ``train.tsv``).

    Raises
    ------
    NotFoundError
        No task has that name.
    DataError
        A file is missing or malformed; the message names file and line.
    """
    if task not in LAYOUTS:
        raise NotFoundError(f"unknown GLUE task '{task}'", hint=f"use one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[task]
    folder = _folder(layout, Path(directory))
    parts: list[list[Example]] = []
    notes: list[str] = []
    for name in (layout.train, layout.dev):
        examples = list(_read(folder / name, layout))
        if _has_csv_quotes(examples):
            examples = [_without_quotes(example) for example in examples]
            notes.append(f"{folder / name} was exported with CSV quotes; they are removed")
        parts.append(examples)
    train, dev = parts
    return TextTask(task, layout.label_names, train, dev, layout.metric, tuple(notes))


def _folder(layout: GlueLayout, directory: Path) -> Path:
    if not directory.is_dir():
        raise DataError(
            f"the data folder {directory} does not exist or is not a folder",
            hint=f"give the folder that holds {layout.folder}/{layout.train}",
        )
    inner = directory / layout.folder
    folder = inner if inner.is_dir() else directory
    missing = [name for name in (layout.train, layout.dev) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} does not contain {' and '.join(missing)}",
            hint=f"give the folder that holds {layout.folder}/ with {layout.train} and {layout.dev}",
        )
    return folder


def _read(path: Path, layout: GlueLayout) -> Iterator[Example]:
    classes = layout.labels
    needed = max(c if c >= 0 else -c - 1 for c in layout.columns) + 1
    rows = _rows(path)
    found = 0
    if layout.header:
        _check_header(path, next(rows, (1, [])), layout)
    for number, row in rows:
        if len(row) < needed:
            raise DataError(
                f"{path}, line {number}: {len(row)} columns, expected at least {needed}",
                hint="the file must be tab-separated and complete; copy it again from the GLUE archive",
            )
        label = classes.get(row[layout.label])
        if label is None:
            raise DataError(
                f"{path}, line {number}: unknown label {row[layout.label]!r}, expected one of {', '.join(classes)}",
                hint=f"check that the file belongs to {layout.folder} and has labels (test files have none)",
            )
        found += 1
        yield Example(row[layout.text], None if layout.text_pair is None else row[layout.text_pair], label)
    if not found:
        raise DataError(f"{path} contains no examples", hint="copy it again from the GLUE archive")


def _has_csv_quotes(examples: Sequence[Example]) -> bool:
    """Whether quotes are those of CSV in every text, and at least one of them is doubled.

    In the published files quotes have no meaning: some texts have unbalanced ones, which are never valid CSV.
    """
    texts = [text for e in examples for text in (e.text, e.text_pair) if text is not None and '"' in text]
    return any('""' in text for text in texts) and all(_is_quoted(text) for text in texts)


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', "")


def _without_quotes(example: Example) -> Example:
    def plain(text: str) -> str:
        return text[1:-1].replace('""', '"') if '"' in text else text

    pair = None if example.text_pair is None else plain(example.text_pair)
    return Example(plain(example.text), pair, example.label)


def _check_header(path: Path, first: tuple[int, list[str]], layout: GlueLayout) -> None:
    number, row = first
    names = tuple(row[c] if -len(row) <= c < len(row) else "" for c in layout.columns)
    if names != layout.header:
        raise DataError(
            f"{path}, line {number}: expected a header with the columns {', '.join(layout.header)}, got "
            f"{', '.join(repr(n) for n in names)}",
            hint=f"check that the file belongs to {layout.folder} and starts with its header line",
        )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    r"""Yield line numbers and columns; a byte order mark, ``\r\n`` and blank lines are accepted.

    Lines end at ``\n`` only and quotes have no meaning, because sentences contain unbalanced quotes and Unicode line
    separators.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="check the file's permissions") from error
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 ({error.reason})", hint="convert the file to UTF-8"
                ) from error
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")
