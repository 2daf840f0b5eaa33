"""Text classification tasks and their tokenization with the model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..core.errors import DataError
from .encoded import EncodedSet

__all__ = ["EncodedSet", "Example", "TextTask", "Tokenizer", "encode"]

#: Sentences per tokenizer call: enough for its threads, few enough for the memory of small devices.
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence or sentence pair, and its class."""

    text: str
    text_pair: str | None
    label: int


@dataclass(frozen=True, slots=True)
class TextTask:
    """A text classification task in memory.

    Attributes
    ----------
    name : str
        Name in the registry.
    labels : tuple of str
        Class names; ``Example.label`` is an index into it.
    train, dev : sequence of Example
        Examples to train on and to evaluate on.
    metric : str
        Name of the score, see :func:`farshore.data.metrics.score`.
    notes : tuple of str
        What the reader guessed about the files, for the run's log.
    """

    name: str
    labels: tuple[str, ...]
    train: Sequence[Example]
    dev: Sequence[Example]
    metric: str
    notes: tuple[str, ...] = ()


class Tokenizer(Protocol):
    """The interface of transformers' fast tokenizers that is used here."""

    @property
    def pad_token_id(self) -> Any: ...

    @property
    def eos_token_id(self) -> Any: ...

    def __call__(self, text: list[str], text_pair: list[str] | None = None, **options: Any) -> Any: ...


def encode(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> EncodedSet:
    """Tokenize ``examples``.

    Parameters
    ----------
    examples : sequence of Example
        Either all or none have a second sentence.
    tokenizer : transformers fast tokenizer
        The model's tokenizer.
    max_length : int
        Tokens to which examples are truncated, special tokens included; no example is dropped.

    Raises
    ------
    DataError
        There are no examples, only some have a second sentence, or one has no tokens.
    """
    pairs = {e.text_pair is not None for e in examples}
    if len(pairs) != 1:
        reason = "only some examples have a second sentence" if pairs else "there are no examples"
        raise DataError(f"cannot tokenize: {reason}", hint="check the data set's files")
    sentences: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    starts: list[int] = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        second = [e.text_pair or "" for e in chunk] if pairs == {True} else None
        out = tokenizer(
            [e.text for e in chunk],
            second,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        sentences += [np.asarray(row, np.int32) for row in out["input_ids"]]
        # RoBERTa and GPT-2 have no token types.
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
