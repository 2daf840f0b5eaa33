"""Scenarios: what a simulation compares, in a YAML file, and the ones that come with the package."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.errors import ConfigError, NotFoundError
from .clock import Devices

_SUFFIXES = (".yaml", ".yml")


class Scenario(BaseModel):
    """Arms of one method on the same clients and data; each arm runs once per seed.

    A setting of an arm goes over the common one; mappings are merged key by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = Field("", description="what it shows, in a sentence")
    method: str = Field(description="see 'farshore methods'")
    clients: int = Field(10, ge=1, description="how many clients there are")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each arm runs once per seed")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the method, for all arms")
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="name -> settings of its own")
    baseline: str = Field("", description="the arm whose best score, rounded down, is the others' target")
    devices: Devices | None = Field(None, description="what the clients run on; then the run tells simulated time")
    score: str = Field("acc", description="the metric that is compared, a share of one")

    @model_validator(mode="after")
    def _names_an_arm(self) -> Self:
        if self.baseline and self.baseline not in self.arms:
            raise ValueError(f"the baseline '{self.baseline}' is none of the arms {', '.join(self.arms)}")
        return self

    def values(self, arm: str) -> dict[str, Any]:
        """The settings of an arm, the common ones under its own."""
        return merged(self.settings, self.arms[arm])


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the values of ``over``; mappings in both are merged in turn."""
    found = dict(under)
    for key, value in over.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def ready() -> dict[str, Scenario]:
    """The scenarios that come with the package, by name."""
    folder = resources.files(__package__) / "scenarios"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(_SUFFIXES)), key=lambda f: f.name)
    return {file.name.rpartition(".")[0]: parse(file.read_text(encoding="utf-8"), file.name) for file in files}


def find(name: str) -> tuple[str, Scenario]:
    """A scenario's short name and itself: of a file, or of the package.

    Raises
    ------
    NotFoundError
        There is neither.
    ConfigError
        The file is no scenario.
    """
    if name.endswith(_SUFFIXES):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the scenario {path}: {error}") from error
        return path.stem, parse(text, str(path))
    known = ready()
    if name in known:
        return name, known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else "see 'farshore simulate --list'"
    raise NotFoundError(f"there is no scenario '{name}'", hint=hint)


def parse(text: str, where: str) -> Scenario:
    """Read a scenario from YAML.

    Raises
    ------
    ConfigError
        It is not YAML, or has a wrong key or value; ``where`` is named.
    """
    try:
        return Scenario.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(Scenario.model_fields)
        hint = f"a scenario's keys are {known}" if first["type"] in ("extra_forbidden", "missing", "model_type") else ""
        raise ConfigError(f"the scenario {where} is wrong: {key}: {first['msg']}", hint=hint) from error
