"""The bytes of a split fine-tuning run equal the formulas, and compression ratios equal the documented ones."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.statistics import CodeStatistics
from farshore.algorithms.split_fine_tuning.wire_codec import code_bytes, code_tensors
from farshore.core.message import Message, Tensor
from farshore.core.seeds import Seed
from farshore.engines.split.wire_codec import gradient_tensor, small_integers
from farshore.wire.encodings import Int4
from farshore.wire.pack import pack

HIDDEN, RANK, LONGEST = 32, 8, 66  # the tiny model's width; SST-2's longest sentence


def side_bytes(sentences: int) -> int:
    """Lengths in 7 bits and labels in 1 bit, each with one byte for the bit width."""
    return 1 + math.ceil(sentences * 7 / 8) + 1 + math.ceil(sentences / 8)


def up_bytes(tokens: int, sentences: int) -> int:
    """Half a byte per number; flags, exponent and an fp16 step per channel; an fp16 mean per channel."""
    return tokens * RANK // 2 + (2 + 2 * RANK) + 2 * RANK + side_bytes(sentences)


def down_bytes(lengths: np.ndarray[Any, Any]) -> int:
    return Int4(grid="uniform16", groups=lengths).size((int(lengths.sum()), RANK))


def steps(outcome: Any) -> list[tuple[str, int, np.ndarray[Any, Any]]]:
    """Return edge name, step and sentence lengths of all training batches."""
    total = outcome.result["steps"]
    return [(n, s, e.shard.batch(e.plan, s).lengths) for n, e in outcome.edges.items() for s in range(total)]


def held_out(outcome: Any) -> list[np.ndarray[Any, Any]]:
    return [batch.lengths for e in outcome.edges.values() for batch in e.shard.held_out()]


@pytest.fixture(scope="module")
def int4(new_runner: Any) -> Any:
    """A run with two edges, 6 steps, and evaluations after steps 3 and 6."""
    runner = new_runner()
    return runner.run(runner.config(cut="ffn_svd", rank=RANK, up="int4", down="int4", dropout=0.1), 2)


def test_each_step_sends_its_codes_and_side_data(int4: Any) -> None:
    rows = {(r.node, r.step, r.kind): r.payload_bytes for r in int4.rows if r.kind in ("activation", "gradient")}
    expected = {}
    for node, step, lengths in steps(int4):
        expected[node, step, "activation"] = up_bytes(int(lengths.sum()), len(lengths))
        expected[node, step, "gradient"] = down_bytes(lengths)
    assert rows == expected
    assert len(rows) == 2 * 2 * 6


def test_a_runs_total_equals_the_formula(int4: Any) -> None:
    trained = [lengths for _, _, lengths in steps(int4)]
    evaluated = 2 * [up_bytes(int(lengths.sum()), len(lengths)) for lengths in held_out(int4)]
    training = sum(up_bytes(int(n.sum()), len(n)) + down_bytes(n) for n in trained)
    # V [r, d] and the mean of the features [d] in bf16, moments of the codes in fp32: up, and down to the second edge.
    codec = 2 * (2 * (RANK * HIDDEN + HIDDEN) + 4 * 2 * RANK)
    assert sum(r.payload_bytes for r in int4.rows) == training + sum(evaluated) + codec
    assert {r.attempt for r in int4.rows} == {0}
    tokens = sum(int(n.sum()) for n in trained)
    assert int4.result["code_bytes"] == 2 * tokens * RANK // 2
    assert all(r.frame_bytes > r.payload_bytes for r in int4.rows)


def test_baselines_equal_their_formulas(int4: Any) -> None:
    trained, evaluated = [n for _, _, n in steps(int4)], 2 * held_out(int4)
    vanilla = sum(2 * int(n.sum()) * HIDDEN * 4 + 8 * len(n) for n in trained)
    vanilla += sum(int(n.sum()) * HIDDEN * 4 + 8 * len(n) for n in evaluated)
    (edge, _) = int4.edges.values()
    parameters = sum(p.numel() for m in (edge.front, int4.cloud.trunk) for p in m.parameters())
    assert int4.result["baselines"] == {
        "vanilla split learning": vanilla,
        "shipping the weights": 2 * 4 * parameters * 2 * 2,  # both directions, float32, 2 epochs, 2 edges
    }
    assert sum(int4.result["parameters"].values()) == parameters


def test_a_vanilla_split_run_sends_its_baseline(runner: Any) -> None:
    """The baseline of all ratios is checked against an actual vanilla run."""
    outcome = runner.run(runner.config())
    sentences = [len(n) for _, _, n in steps(outcome)] + 2 * [len(n) for n in held_out(outcome)]
    sent = sum(r.payload_bytes for r in outcome.rows if r.kind in ("activation", "gradient", "evaluation"))
    packed = sum(8 * n - side_bytes(n) for n in sentences)  # the baseline counts 4 bytes per length and label
    assert sent + packed == outcome.result["baselines"]["vanilla split learning"]


def test_a_capped_run_is_compared_with_its_started_epochs(runner: Any) -> None:
    outcome = runner.run(runner.config(epochs=5, steps=4))  # 3 steps per epoch: one full and one partial epoch
    parameters = sum(outcome.result["parameters"].values())
    assert outcome.result["baselines"]["shipping the weights"] == 2 * 4 * parameters * 2


def test_the_reference_shape_of_the_paper() -> None:
    """BERT-base, 32 sentences of 66 tokens, rank 8, float32: 67,584 bytes instead of 6,488,064, a ratio of 96."""
    statistics = CodeStatistics(8)
    codes = code_tensors(np.ones((32 * 66, 8), np.float32), "raw", statistics)
    whole = {"codes": Tensor(np.ones((32 * 66, 768), np.float32))}
    small, large = (pack(Message("activation", tensors=t)).payload_bytes for t in (codes, whole))
    assert (small, large) == (67_584, 6_488_064)
    assert large / small == 96.0
    sizes = {b: code_bytes(32 * 66 * 8, 0, SplitFineTuning(up=b, down=b)) // 2 for b in ("raw", "int8", "int4", "int2")}
    assert sizes == {"raw": 67_584, "int8": 16_896, "int4": 8_448, "int2": 4_224}


@pytest.mark.parametrize(("rank", "least"), [(32, 0.9 * 96), (8, 0.9 * 384), (4, 500)])
def test_payload_compression_is_close_to_code_compression(rank: int, least: float) -> None:
    """MiniLM's width, 32 sentences with the lengths of SST-2 (425 tokens), both directions, with side data."""
    lengths = np.array([5, 6, 7, 8, 9, 10, 11, 12, 12, 13, 13, 13, 13, 13, 13, 13] * 2) + np.arange(32) // 6
    lengths[-1] += 425 - lengths.sum()
    numbers = np.random.default_rng(1).normal(size=(425, rank)).astype(np.float32)
    tensors = code_tensors(numbers, "int4", CodeStatistics(rank))
    tensors |= {"lengths": small_integers(lengths, 66), "labels": small_integers(lengths % 2, 1)}
    up = pack(Message("activation", tensors=tensors))
    down = pack(Message("gradient", tensors={"codes": gradient_tensor(numbers, "int4", lengths, Seed(1))}))
    vanilla = 2 * 425 * 384 * 4 + 32 * 8
    assert vanilla / (up.payload_bytes + down.payload_bytes) >= least


@pytest.mark.parametrize("changes", [{"cut": "boundary"}, {"cut": "ffn_svd", "rank": 8, "up": "int4"}])
def test_a_frozen_front_gets_no_gradients(runner: Any, changes: dict[str, Any]) -> None:
    outcome = runner.run(runner.config(**changes, freeze="front+codec", dropout=0.1, average_every=2), 2)
    kinds = Counter((r.kind, r.direction) for r in outcome.rows)
    assert kinds["activation", "up"] == 2 * 6
    assert not {("gradient", "down"), ("weights", "up"), ("weights", "down")} & kinds.keys()
    down = sum(r.payload_bytes for r in outcome.rows if r.direction == "down" and r.kind != "codec")
    assert down == 0
    tokens = sum(int(n.sum()) for _, _, n in steps(outcome))
    evaluated = sum(int(n.sum()) * HIDDEN * 4 + 8 * len(n) for n in 2 * held_out(outcome))
    vanilla = sum(int(n.sum()) * HIDDEN * 4 + 8 * len(n) for _, _, n in steps(outcome))
    assert outcome.result["baselines"]["vanilla split learning"] == vanilla + evaluated
    assert outcome.result["code_bytes"] == tokens * (RANK // 2 if "rank" in changes else HIDDEN * 4)
    assert len(set(outcome.losses)) == 6, "the trunk does not learn"
