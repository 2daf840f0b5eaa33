"""Devices of a simulated population: groups of device profiles, from which each client's device is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.errors import ConfigError
from ..core.profiles import DeviceProfile
from ..core.seeds import Seed
from ..core.yaml_text import load_yaml

_LINK = ("up_mbps", "down_mbps", "latency_ms", "jitter_ms", "loss", "up_joule_per_mb", "down_joule_per_mb")
_DEVICE = ("compute_factor", "compute_watts", "availability", "period_s", "crash_rate")
_SPREADABLE = ("up_mbps", "down_mbps", "latency_ms", "compute_factor")


class Spread(BaseModel):
    """Distribution of a value within a group: either log-normal or uniform."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lognormal: float | None = Field(None, ge=0, description="sigma; the profile's value is the median")
    uniform: tuple[float, float] | None = Field(None, description="lower and upper bound; replaces the profile's value")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.lognormal is None) == (self.uniform is None):
            raise ValueError("give either 'lognormal' or 'uniform'")
        if self.uniform is not None and not 0 < self.uniform[0] <= self.uniform[1]:
            raise ValueError("'uniform' needs a positive lower bound and an upper bound that is not smaller")
        return self


class Group(BaseModel):
    """Clients with the same device profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: DeviceProfile = DeviceProfile()
    share: float = Field(1.0, gt=0, description="share of the clients that no count covers, relative to other shares")
    count: int = Field(0, ge=0, description="number of clients, instead of a share; 0 = by share")
    spread: dict[str, Spread] = Field(default_factory=dict, description=f"distributions of {', '.join(_SPREADABLE)}")

    @model_validator(mode="after")
    def _spreads_what_can_be(self) -> Self:
        for name in self.spread:
            if name not in _SPREADABLE:
                raise ValueError(f"'{name}' cannot have a spread, only {', '.join(_SPREADABLE)}")
        return self


class Groups(BaseModel):
    """Groups that make up a population."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[Group, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Population:
    """Device properties of all clients, as a table with one row per client.

    Attributes
    ----------
    columns : dict of float64 arrays (clients,)
        Values by the names of the profile's fields, and ``phase``: the position in its on/off period at which a client
        starts, from 0 to 1.
    """

    columns: Mapping[str, NDArray[np.float64]]

    @property
    def count(self) -> int:
        """Number of clients."""
        return len(self.columns["phase"])

    @classmethod
    def from_groups(cls, groups: Groups | Mapping[str, Any] | str, count: int, seed: Seed) -> Population:
        """Draw the devices of ``count`` clients.

        Parameters
        ----------
        groups : Groups, mapping or str
            The groups; a string is a YAML file or the name of a bundled population.
        count : int
            Number of clients.
        seed : Seed
            Seed of the run.

        Raises
        ------
        ConfigError
            The groups are invalid, or do not add up to ``count`` clients.
        """
        groups = groups if isinstance(groups, Groups) else read_groups(groups)
        generator = seed.child("devices").numpy()
        # Shuffled, so that a client's group is independent of its number and thus of its data.
        group_of_client = generator.permutation(np.repeat(np.arange(len(groups.groups)), _sizes(groups.groups, count)))
        columns = {name: np.empty(count) for name in (*_LINK, *_DEVICE)}
        for index, group in enumerate(groups.groups):
            members = group_of_client == index
            size = int(members.sum())
            for name, column in columns.items():
                value = getattr(group.profile.link if name in _LINK else group.profile, name)
                column[members] = _sample(value, group.spread.get(name), size, generator)
        columns["phase"] = generator.random(count)
        return cls(columns)


def read_groups(groups: Mapping[str, Any] | str) -> Groups:
    """Read groups from a mapping, a YAML file, or the bundled population of a name.

    Raises
    ------
    ConfigError
        The file or name does not exist, or a key or value is invalid.
    """
    source = groups if isinstance(groups, str) else "in the scenario"
    try:
        return Groups.model_validate(load_yaml(_text(groups)) if isinstance(groups, str) else groups)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read devices {source}: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"invalid devices {source}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        ) from error


def bundled_populations() -> list[str]:
    """Return the names of the populations that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files(__package__) / "profiles"


def _text(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return Path(name).read_text(encoding="utf-8")
    if name not in bundled_populations():
        known = ", ".join(bundled_populations())
        raise ConfigError(f"unknown devices '{name}'", hint=f"name a YAML file, or one of {known}")
    return str((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _sizes(groups: tuple[Group, ...], count: int) -> NDArray[np.int64]:
    """Return the number of clients per group: counts as given, shares of the other clients by largest remainder."""
    sizes = np.array([g.count for g in groups], np.int64)
    shares = np.array([0.0 if g.count else g.share for g in groups])
    remaining = count - int(sizes.sum())
    if remaining < 0 or (remaining > 0 and not shares.any()):
        raise ConfigError(f"the groups of devices have {sizes.sum()} clients, but the run has {count}")
    if remaining:
        exact = remaining * shares / shares.sum()
        sizes += np.floor(exact).astype(np.int64)
        order = np.argsort(-(exact - np.floor(exact)), kind="stable")
        sizes[order[: count - int(sizes.sum())]] += 1
    return sizes


def _sample(
    value: float, spread: Spread | None, size: int, generator: np.random.Generator
) -> NDArray[np.float64] | float:
    if spread is None:
        return value
    if spread.uniform is not None:
        return generator.uniform(*spread.uniform, size)
    return value * np.exp(generator.normal(0.0, spread.lognormal or 0.0, size))
