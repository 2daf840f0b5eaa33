"""Scenarios: YAML files that describe the arms that a simulation compares, and those that come with the package."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..core.errors import ConfigError, NotFoundError
from ..core.yaml_text import load_yaml
from .clock import Devices

_SUFFIXES = (".yaml", ".yml")


class Scenario(BaseModel):
    """Arms of one method on the same nodes and data; each arm runs once per seed.

    Settings of an arm override the common settings; mappings are merged key by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = Field("", description="one sentence on what the scenario shows")
    method: str = Field(description="name of a method, see 'farshore methods'")
    clients: int = Field(10, ge=1, description="number of clients of a federated method")
    nodes: PositiveInt | dict[str, NonNegativeInt] | None = Field(
        None, description="number of nodes of another method, or one per role; by default what the method says"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each arm runs once per seed")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the method, for all arms")
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="name of each arm -> settings of that arm")
    baseline: str = Field("", description="arm whose best score, rounded down, is the target of the others")
    devices: Devices | None = Field(None, description="devices of the clients; with them, runs keep virtual time")
    score: str = Field(
        "", description="metric to compare, between 0 and 1; by default acc for federated methods, and none for others"
    )

    @model_validator(mode="after")
    def _names_an_arm(self) -> Self:
        if self.baseline and self.baseline not in self.arms:
            raise ValueError(f"the baseline '{self.baseline}' is not one of the arms {', '.join(self.arms)}")
        return self

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ValueError(f"the seed {twice[0]} is given twice: it would count as two runs with the same result")
        return seeds

    def values(self, arm: str) -> dict[str, Any]:
        """Return the settings of an arm: the common settings, overridden by its own."""
        return merge(self.settings, self.arms[arm])


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden by ``override``; mappings in both are merged recursively."""
    result = dict(base)
    for key, value in override.items():
        base_value = result.get(key)
        result[key] = (
            merge(base_value, value) if isinstance(base_value, Mapping) and isinstance(value, Mapping) else value
        )
    return result


def bundled_scenarios() -> dict[str, Scenario]:
    """Return the scenarios that come with the package, by name."""
    folder = resources.files(__package__) / "scenarios"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(_SUFFIXES)), key=lambda f: f.name)
    return {file.name.rpartition(".")[0]: parse_scenario(file.read_text(encoding="utf-8"), file.name) for file in files}


def load_scenario(name: str) -> tuple[str, Scenario]:
    """Load a scenario from a YAML file, or a bundled one by name; return its short name and the scenario.

    Raises
    ------
    NotFoundError
        There is no bundled scenario of that name.
    ConfigError
        The file cannot be read or is not a valid scenario.
    """
    if name.endswith(_SUFFIXES):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the scenario {path}: {error}") from error
        return path.stem, parse_scenario(text, str(path))
    bundled = bundled_scenarios()
    if name in bundled:
        return name, bundled[name]
    matches = difflib.get_close_matches(name, bundled, n=1, cutoff=0.4)
    hint = f"did you mean '{matches[0]}'?" if matches else "see 'farshore simulate --list'"
    raise NotFoundError(f"unknown scenario '{name}'", hint=hint)


def parse_scenario(text: str, source: str) -> Scenario:
    """Parse a scenario from YAML text.

    Raises
    ------
    ConfigError
        The text is not YAML, or a key or value is invalid. The message names ``source``.
    """
    try:
        return Scenario.model_validate(load_yaml(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        keys = ", ".join(Scenario.model_fields)
        hint = f"a scenario's keys are {keys}" if first["type"] in ("extra_forbidden", "missing", "model_type") else ""
        raise ConfigError(f"invalid scenario {source}: {key}: {first['msg']}", hint=hint) from error
