"""Text classification tasks: examples as strings, and their way through a model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..core.errors import DataError
from .encoded import EncodedSet

__all__ = ["EncodedSet", "Example", "TextTask", "Tokenizer", "encode"]

#: Sentences handed to the tokenizer at once: enough for its threads, few enough for a small device.
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Example:
    """One sentence, or a pair of them, and its class."""

    text: str
    text_pair: str | None
    label: int


@dataclass(frozen=True, slots=True)
class TextTask:
    """A text classification task in memory.

    Attributes
    ----------
    name : str
        Name in the table of tasks.
    labels : tuple of str
        Names of the classes; ``Example.label`` is an index into it.
    train, dev : sequence of Example
        What to train on and what to score.
    metric : str
        Name of the score, see :func:`farshore.data.metrics.score`.
    """

    name: str
    labels: tuple[str, ...]
    train: Sequence[Example]
    dev: Sequence[Example]
    metric: str


class Tokenizer(Protocol):
    """The part of a transformers fast tokenizer that is used here."""

    @property
    def pad_token_id(self) -> Any: ...

    @property
    def eos_token_id(self) -> Any: ...

    def __call__(self, text: list[str], text_pair: list[str] | None = None, **options: Any) -> Any: ...


def encode(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> EncodedSet:
    """Tokenize ``examples``, cutting each to ``max_length`` tokens (special tokens included).

    Parameters
    ----------
    examples : sequence of Example
        Either all have a second sentence or none has.
    tokenizer : transformers fast tokenizer
        The model's own.
    max_length : int
        Longer ones are cut, never dropped: train and dev keep their size (spec section 6).

    Raises
    ------
    DataError
        There are no examples, only some have a second sentence, or one has no tokens at all.
    """
    pairs = {e.text_pair is not None for e in examples}
    if len(pairs) != 1:
        what = "some examples have a second sentence and some have none" if pairs else "there are no examples"
        raise DataError(f"cannot tokenize: {what}", hint="check the data set's files")
    sentences: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    starts: list[int] = []
    for at in range(0, len(examples), _CHUNK):
        part = examples[at : at + _CHUNK]
        second = [e.text_pair or "" for e in part] if pairs == {True} else None
        out = tokenizer(
            [e.text for e in part],
            second,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        sentences += [np.asarray(row, np.int32) for row in out["input_ids"]]
        # RoBERTa and GPT-2 tokenizers give no types, and their models want none.
        if second is not None and "token_type_ids" in out:
            starts += [row.index(1) if 1 in row else len(row) for row in out["token_type_ids"]]
    return _pack(examples, sentences, starts, tokenizer)


def _pack(
    examples: Sequence[Example],
    sentences: Sequence[np.ndarray[Any, np.dtype[np.int32]]],
    starts: Sequence[int],
    tokenizer: Tokenizer,
) -> EncodedSet:
    lengths = np.fromiter((len(s) for s in sentences), np.int64, len(sentences))
    if not lengths.all():
        empty = int(np.argmin(lengths))
        raise DataError(f"example {empty} ({examples[empty].text!r}) has no tokens", hint="remove the empty line")
    pad = next((p for p in (tokenizer.pad_token_id, tokenizer.eos_token_id) if p is not None), 0)
    return EncodedSet(
        tokens=np.concatenate(sentences),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.fromiter((e.label for e in examples), np.int64, len(examples)),
        ids=np.arange(len(examples), dtype=np.int64),
        pad_id=int(pad),
        pair_starts=np.asarray(starts, np.int32) if starts else None,
    )
