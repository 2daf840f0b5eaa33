"""The benchmark of update encodings: paired seeds, ledger volumes, and predicted sizes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from farshore.core.transfer import Transfer
from farshore.core.workloads import load
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.config import Uplink
from farshore.engines.federated.methods import FLOATS, FedAvg
from farshore.models.flat_params import FlatModel
from farshore.reports.curves import Curve
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger
from farshore.simulations.trial import Trial
from farshore.wire.pack import pack

MODEL = load("vhl").config


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("update_encodings")


@pytest.fixture
def cost(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("encoding_cost")


def flat(score: float) -> Curve:
    return Curve((1, 2), (score - 0.1, score), (100, 200))


def test_arms_differ_from_their_method_only_in_the_encoding(bench: ModuleType) -> None:
    found = bench.arms(list(bench.METHODS))
    assert len(found) == 3 * (len(bench.UPLINKS) + 2)
    resolved = {name: MODEL.model_validate(settings).model_dump() for name, settings in found.items()}
    distinct = set()
    for name, config in resolved.items():
        base = resolved[f"{name.partition(', ')[0]}, raw"]
        differs = {key for key in config if config[key] != base[key]}
        assert differs <= ({"lr"} if bench.CONTROL in name else {"uplink", "downlink"}), name
        assert abs(config["lr"] / base["lr"] - 1) < 2.0**-20
        distinct.add(str([config[key] for key in ("method", "virtual", "uplink", "downlink", "lr")]))
    assert len(distinct) == len(found)


def test_methods_must_be_known_and_include_fedavg(bench: ModuleType) -> None:
    assert bench._methods("fedavg,scaffold") == ["FedAvg", "SCAFFOLD"]
    for wrong in ("scaffold", "fedavg,fedsgd", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            bench._methods(wrong)


def rows(up: int, frames: int = 80) -> list[dict[str, Any]]:
    """Ledger rows of two runs of four rounds: ``frames`` updates of ``up`` bytes, and states of 100 bytes."""
    sizes = {"dense_bytes": frames * 100, "payload_bytes": frames * up, "frame_bytes": frames * (up + 9)}
    state = {**sizes, "payload_bytes": frames * 100, "frame_bytes": 0}
    return [
        {"direction": "up", "kind": "update", "frames": frames, **sizes},
        {"direction": "down", "kind": "model", "frames": frames, **state},
    ]


def test_volumes_are_means_over_seeds_and_compression_refers_to_raw_fedavg(bench: ModuleType) -> None:
    raw, small = bench.volume(rows(100), seeds=2, rounds=4), bench.volume(rows(25), seeds=2, rounds=4)
    assert (small.updates, small.rounds) == (40, 4)
    assert small.payload == {"up": 40 * 25, "down": 4000}
    assert small.frame["up"] == 40 * 34
    # Compression refers to FedAvg's dense bytes, not to those of the method itself.
    twice = replace(small, dense={"up": 8000.0, "down": 8000.0})
    found = {"FedAvg, raw": raw, "FedAvg, int8": small, "SCAFFOLD, int8": twice}
    for arm in ("FedAvg, int8", "SCAFFOLD, int8"):
        assert bench.compression(found, arm) == {"up": 4.0, "both": 8000 / 5000}


def test_messages_repeated_after_a_restart_count_once(bench: ModuleType, tmp_path: Path) -> None:
    settings = {"rounds": 2, "per_round": 2, "method": "fedavg", "virtual": {"enabled": False}}
    config = MODEL.model_validate(settings).model_dump(mode="json")
    trials = [Trial("FedAvg, raw", 0, str(tmp_path / "run"), "vhl", config, 10, {})]
    bench.run_unfinished(trials)
    once = bench.read(trials)[1]["FedAvg, raw"]
    assert (once.updates, once.payload) == (4, dict.fromkeys(("up", "down"), 4 * bench.update_bytes(Uplink())))
    directory = tmp_path / "run"
    rows_before = read_ledger(directory).to_pylist()
    with Ledger(directory) as ledger:
        for row in rows_before:
            if row["round"] == 2:
                ledger.record(Transfer(**{**row, "attempt": 1}))
    assert bench.read(trials)[1]["FedAvg, raw"] == once


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    ("scores", "verdicts"),
    [
        ({}, [True, True, False]),  # equal to no feedback is not an improvement
        ({"fp16": 0.897, "int8": 0.896, "topk 1 %": 0.91}, [False, True, True]),
        ({"fp16": 0.8985, "int8": 0.894, "topk 1 %, no feedback": 0.8}, [True, False, True]),
    ],
)
def test_gates_are_judged(
    bench: ModuleType, cost: ModuleType, scores: dict[str, float], verdicts: list[bool], more: int
) -> None:
    curves, volumes = {}, {}
    for name, uplink in bench.UPLINKS.items():
        curves[f"FedAvg, {name}"] = {seed: flat(scores.get(name, 0.9)) for seed in (0, 1, 2)}
        volumes[f"FedAvg, {name}"] = bench.volume(rows(cost.update_bytes(uplink) + more), seeds=2, rounds=4)
    volumes["FedAvg, raw"].dense["up"] = volumes["FedAvg, raw"].payload["up"]
    slow = [cost.Cost("24 k", "int8", 8, 2, 7, 9.0, 9.0, 1.0, 1.0, 1.0)]  # not judged: the small model
    large = [cost.Cost(f"{cost.LARGE} …", "int8", 8, 2, 7, 1.0 + more, 1.0, 1.0, 1.0, 1.0)]
    found = bench.gates(curves, volumes, slow + large, judged=True)
    assert [g.holds for g in found] == [*verdicts, not more, True, True, not more]
    unjudged = bench.gates(curves, volumes, slow + large, judged=False)
    assert [g.holds for g in unjudged if g.holds is not None] == [not more]


def test_tables_compare_each_method_with_its_raw_updates(bench: ModuleType) -> None:
    curves = {
        "FedAvg, raw": {0: flat(0.8), 1: flat(0.9)},
        "FedAvg, int8": {0: flat(0.81), 1: flat(0.88)},
        "SCAFFOLD, raw": {0: flat(0.5), 1: flat(0.5)},
        "SCAFFOLD, int8": {0: flat(0.5), 1: flat(0.51)},
    }
    volumes = {name: bench.volume(rows(25 if "int8" in name else 100), seeds=2, rounds=4) for name in curves}
    found = bench.compared(curves)
    rows_before = {row[0]: row[1:] for row in bench.accuracy_table(found, curves).rows}
    assert rows_before["FedAvg, int8"][2:] == ["-0.5 ± 1.5", "2 (1/2)"]
    assert rows_before["SCAFFOLD, int8"][2:] == ["+0.5 ± 0.5", "2 (2/2)"]
    assert rows_before["SCAFFOLD, raw"][2] == "–"
    sizes = {row[0]: row[1:] for row in bench.volume_table(found, volumes).rows}
    assert sizes["FedAvg, int8"] == ["0.2 / 1.0", "0.3 / 0.0", "4.0", "1.60", "0.0"]


def test_predicted_sizes_equal_encoded_sizes(bench: ModuleType, cost: ModuleType) -> None:
    for uplink in [*bench.UPLINKS.values(), Uplink(encoding="topk", values="fp16"), Uplink(encoding="lowrank", rank=1)]:
        model = FlatModel(cost.digits_model())
        seen = FedAvg().start(model)
        update = cost.moved(seen, model.layout)
        packed = pack(UpdateCodec(uplink, layout=model.layout).encode_update(1, update, seen, {}))
        assert cost.update_bytes(uplink, model.layout) == packed.payload_bytes, uplink


def test_the_large_model_has_mcmahans_size_and_updates_change_every_layer(cost: ModuleType) -> None:
    model = FlatModel(cost.mcmahan_cnn())
    assert model.layout.trainable == model.layout.total == 1_663_370
    seen = FedAvg().start(model)
    change = cost.moved(seen, model.layout).tensors[FLOATS] - seen[FLOATS]
    for view in model.layout.floats:
        part = slice(view.start, view.start + view.count)
        assert np.std(change[part]) == pytest.approx(0.01 * np.std(seen[FLOATS][part]), rel=0.5)


def test_encodings_and_references_are_timed_on_both_models(cost: ModuleType) -> None:
    found = cost.costs({"raw": Uplink(), "topk": Uplink(encoding="topk")}, repeats=1)
    assert len({c.state for c in found}) == 2
    for c in found:
        assert min(c.write, c.read, c.deflate, c.inflate, c.copy) > 0
        assert (c.payload_bytes == c.raw_bytes) == (c.name == "raw")
        assert c.copy < c.deflate
    one = cost.Cost("a", "b", 100, 50, 90, 2.0, 1.0, 4.0, 2.0, 0.5)
    assert (one.of_zlib, one.of_copy) == (0.5, 3.0)
    made = cost.table([one])
    assert made.rows[0] == ["a", "b", "50", "2.0", "2000.00 + 1000.00", "0.50", "3.0"]
    assert [row[1] for row in made.rows[1:]] == ["reference: zlib, level 1", "reference: copy"]
    assert made.rows[1][-2:] == ["1", "6.0"]
