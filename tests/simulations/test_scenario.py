"""Scenario files: valid and invalid content, and validity of the bundled scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.cli.settings import resolve
from farshore.core.errors import ConfigError, NotFoundError
from farshore.core.workloads import load
from farshore.simulations.scenario import Scenario, bundled_scenarios, load_scenario, merge, parse_scenario


@pytest.mark.parametrize("name", sorted(bundled_scenarios()))
def test_every_arm_of_a_bundled_scenario_is_a_valid_configuration(name: str) -> None:
    scenario = bundled_scenarios()[name]
    model = load(scenario.method).config
    for arm in scenario.arms:
        assert resolve(model, scenario.values(arm), ()).per_round <= scenario.clients  # type: ignore[attr-defined]
    assert scenario.about


def test_settings_of_an_arm_override_the_common_settings() -> None:
    scenario = Scenario(method="vhl", settings={"lr": 1, "virtual": {"enabled": True, "batch": 8}}, arms={"a": {}})
    assert scenario.values("a") == {"lr": 1, "virtual": {"enabled": True, "batch": 8}}
    assert merge(scenario.settings, {"lr": 2, "virtual": {"enabled": False}}) == {
        "lr": 2,
        "virtual": {"enabled": False, "batch": 8},
    }
    assert scenario.settings["virtual"]["enabled"] is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("method: vhl\narms: {a: {}}\nclient: 3", "client"),
        ("method: vhl\narms: {}", "arms"),
        ("arms: {a: {}}", "method"),
        ("method: vhl\narms: {a: {}}\nbaseline: b", "'b' is not one of the arms a"),
        ("method: vhl\narms: {a: {}}\nclients: 0", "clients"),
        ("[", "not YAML"),
        ("", "invalid scenario"),
    ],
)
def test_invalid_file_raises_an_error_naming_file_and_key(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_scenario(text, "mine.yaml")
    assert "mine.yaml" in str(caught.value)


def test_unknown_name_suggests_a_similar_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'vhl'"):
        load_scenario("vhll")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_scenario(str(tmp_path / "none.yaml"))
