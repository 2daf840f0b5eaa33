"""Settings of sweeps, their cells, and the methods that cannot be swept."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from farshore.core.errors import ConfigError, NotFoundError
from farshore.engines.work_queue.item import ItemResult, Outcome, WorkItem
from farshore.simulations.sweeps.cells import cells, method_of, settings_of
from farshore.simulations.sweeps.config import Halving, SweepConfig
from farshore.simulations.sweeps.rungs import next_rung


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate({"method": "ping", **settings})


def test_cells_are_all_combinations_and_the_last_key_varies_fastest() -> None:
    found = cells(sweep(grid={"rounds": [1, 2], "kilobytes": [4, 8]}))
    assert found == [{"rounds": r, "kilobytes": k} for r in (1, 2) for k in (4, 8)]
    assert cells(sweep()) == [{}]


def test_dotted_keys_reach_into_sections_and_leave_the_settings_as_they_are() -> None:
    config = sweep(method="vhl", settings={"virtual": {"per_class": 4}}, grid={"virtual.batch": [8]})
    assert settings_of(config, {"virtual.batch": 8}) == {"virtual": {"per_class": 4, "batch": 8}}
    assert config.settings == {"virtual": {"per_class": 4}}
    with pytest.raises(ConfigError, match=r"'lr' is '3', which has no 'lr\.x'"):
        settings_of(sweep(settings={"lr": 3}), {"lr.x": 1})


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (3,)), ("0..4", (0, 1, 2, 3, 4)), ("7,1..2", (7, 1, 2)), (5, (5,)), ([2, 1], (2, 1))]
)
def test_seeds_are_read_from_texts_and_lists(text: Any, seeds: tuple[int, ...]) -> None:
    assert sweep(seeds=text).seeds == seeds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": "0..x"}, "not a list of seeds"),
        ({"seeds": "5..1"}, "5..1 is empty"),
        ({"seeds": [1, 1]}, "seeds has 1 twice"),
        ({"seeds": [-1]}, "from 0 to"),
        ({"grid": {"lr": []}}, "'lr' has no values"),
        ({"grid": {"lr": [0.1, 0.1]}}, "lr has 0.1 twice"),
        ({"grid": {"rounds": list(range(400))}, "seeds": "0..999"}, "400,000 items"),
        ({"halving": "epochs=5"}, "KEY=FIRST..LAST"),
        ({"halving": "epochs=9..3", "metric": "acc"}, "does not exceed"),
        ({"halving": "epochs=1..3"}, "give the metric"),
        ({"halving": "rounds=1..3", "metric": "acc", "grid": {"rounds": [1]}}, "cannot be in the grid"),
    ],
)
def test_wrong_settings_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep(**settings)


def test_the_budgets_grow_by_the_factor_up_to_the_last() -> None:
    assert Halving.parse("epochs=5..40").budgets == (5, 10, 20, 40)
    assert Halving.parse("epochs=5..50/3").budgets == (5, 15, 45, 50)


def result(config: SweepConfig, cell: dict[str, Any], budget: int, acc: float | None, seed: int = 0) -> ItemResult:
    item = WorkItem({"method": config.method, "config": {}, "cell": cell, "threads": 1, "budget": budget}, seed)
    return ItemResult(0, item, None if acc is None else Outcome({"acc": acc}), "" if acc is not None else "boom")


def test_halving_keeps_the_best_cells_by_their_mean_and_drops_those_without_a_value() -> None:
    grid = {"kilobytes": [1, 2, 3, 4, 5]}
    config = sweep(grid=grid, metric="acc", halving="rounds=2..8", seeds=[0, 1])
    scores = {1: (0.5, 0.7), 2: (0.9, 0.9), 3: (0.1, None), 4: (None, None), 5: (0.8, 0.1)}
    first = [
        result(config, {"kilobytes": k}, 2, acc, seed) for k, pair in scores.items() for seed, acc in enumerate(pair)
    ]
    assert next_rung(config, first) == (4, [{"kilobytes": 1}, {"kilobytes": 2}, {"kilobytes": 5}])
    second = [result(config, {"kilobytes": k}, 4, acc) for k, acc in ((1, 0.4), (2, 0.3), (5, 0.2))]
    assert next_rung(config, first + second) == (8, [{"kilobytes": 1}, {"kilobytes": 2}])
    third = [result(config, {"kilobytes": k}, 8, 0.5) for k in (1, 2)]
    assert next_rung(config, first + second + third) is None
    low = config.model_copy(update={"best": "min"})
    assert next_rung(low, second) == (8, [{"kilobytes": 2}, {"kilobytes": 5}])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "flower"}, "'flower' cannot be swept: its runs bring code"),
        ({"method": "split_segment"}, "'split_segment' cannot be swept: its node is a training script"),
        ({"method": "sweep", "settings": {"method": "ping"}}, "'sweep' cannot be swept: it is a sweep itself"),
        ({"method": "vhl"}, "'vhl' cannot be swept: it does not run on one node alone, it needs 5"),
        ({"method": "data_parallel", "settings": {"transport": "peers"}}, "transport=peers"),
        ({"method": "data_parallel", "settings": {"least": 2}}, "it needs 2"),
        ({"settings": {"rouns": 3}}, "rouns"),
        ({"grid": {"rounds": [0]}}, "rounds"),
    ],
)
def test_a_method_that_cannot_be_swept_is_named_with_the_reason(config: dict[str, Any], message: str) -> None:
    given = {"flower": {"app": "x"}, "split_segment": {}}
    if config.get("method") in given:  # their settings cannot be written by hand
        from farshore.core.workloads import load
        from farshore.simulations.sweeps.cells import check_alone

        with pytest.raises(ConfigError, match=message):
            check_alone(load(config["method"]), SweepConfig(method="ping"))
        return
    with pytest.raises(ConfigError, match=message):
        method_of(sweep(**config))


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'ping'"):
        method_of(sweep(method="pingg"))


def test_vhl_can_be_swept_with_one_client_per_round() -> None:
    method_of(sweep(method="vhl", settings={"per_round": 1}, grid={"lr": [0.1]}))
