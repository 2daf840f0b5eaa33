"""Scenarios: what a file may say, and that the ready ones are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.cli.settings import resolve
from farshore.core.errors import ConfigError, NotFoundError
from farshore.core.workloads import load
from farshore.simulations.scenario import Scenario, find, merged, parse, ready


@pytest.mark.parametrize("name", sorted(ready()))
def test_every_arm_of_a_ready_scenario_is_a_configuration(name: str) -> None:
    scenario = ready()[name]
    model = load(scenario.method).config
    for arm in scenario.arms:
        assert resolve(model, scenario.values(arm), ()).per_round <= scenario.clients  # type: ignore[attr-defined]
    assert scenario.about


def test_an_arms_settings_go_over_the_common_ones() -> None:
    scenario = Scenario(method="vhl", settings={"lr": 1, "virtual": {"enabled": True, "batch": 8}}, arms={"a": {}})
    assert scenario.values("a") == {"lr": 1, "virtual": {"enabled": True, "batch": 8}}
    assert merged(scenario.settings, {"lr": 2, "virtual": {"enabled": False}}) == {
        "lr": 2,
        "virtual": {"enabled": False, "batch": 8},
    }
    assert scenario.settings["virtual"]["enabled"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: vhl\narms: {a: {}}\nclient: 3", "client"),
        ("method: vhl\narms: {}", "arms"),
        ("arms: {a: {}}", "method"),
        ("method: vhl\narms: {a: {}}\nbaseline: b", "'b' is none of the arms a"),
        ("method: vhl\narms: {a: {}}\nclients: 0", "clients"),
        ("[", "not YAML"),
        ("", "wrong"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse(text, "mine.yaml")
    assert "mine.yaml" in str(caught.value)


def test_a_name_that_nearly_fits_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'vhl'"):
        find("vhll")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        find(str(tmp_path / "none.yaml"))
