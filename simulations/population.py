"""What devices a simulated population has: groups of profiles, drawn once from a run's seed as columns."""

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

_LINK = ("up_mbps", "down_mbps", "latency_ms", "jitter_ms", "loss", "up_joule_per_mb", "down_joule_per_mb")
_DEVICE = ("compute_factor", "compute_watts", "availability", "period_s", "crash_rate")
_SPREADABLE = ("up_mbps", "down_mbps", "latency_ms", "compute_factor")


class Spread(BaseModel):
    """How a figure differs within a group; one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lognormal: float | None = Field(None, ge=0, description="sigma; the profile's value is the median")
    uniform: tuple[float, float] | None = Field(None, description="from, to; in place of the profile's value")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.lognormal is None) == (self.uniform is None):
            raise ValueError("give either 'lognormal' or 'uniform'")
        if self.uniform is not None and not 0 < self.uniform[0] <= self.uniform[1]:
            raise ValueError("'uniform' goes from a positive figure to one that is not smaller")
        return self


class Group(BaseModel):
    """Clients of one profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: DeviceProfile = DeviceProfile()
    share: float = Field(1.0, gt=0, description="of the clients that no group counts, relative to the others' shares")
    count: int = Field(0, ge=0, description="so many clients instead of a share; 0 = by share")
    spread: dict[str, Spread] = Field(default_factory=dict, description=f"of {', '.join(_SPREADABLE)}")

    @model_validator(mode="after")
    def _spreads_what_can_be(self) -> Self:
        for name in self.spread:
            if name not in _SPREADABLE:
                raise ValueError(f"'{name}' cannot be spread, only {', '.join(_SPREADABLE)}")
        return self


class Groups(BaseModel):
    """A population's devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[Group, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Population:
    """One row per client.

    Attributes
    ----------
    columns : dict of float64 arrays (clients,)
        By the profile's names of them, and ``phase``: where in its on/off period a client begins, as a share.
    """

    columns: Mapping[str, NDArray[np.float64]]

    @property
    def count(self) -> int:
        """How many clients there are."""
        return len(self.columns["phase"])

    @classmethod
    def from_spec(cls, spec: Groups | Mapping[str, Any] | str, count: int, seed: Seed) -> Population:
        """Draw ``count`` clients.

        Parameters
        ----------
        spec : Groups, mapping or str
            The groups; a string is a YAML file or the name of one that comes with the package.
        count : int
        seed : Seed
            The run's.

        Raises
        ------
        ConfigError
            The specification is wrong, or counts other than ``count`` clients.
        """
        groups = spec if isinstance(spec, Groups) else read_groups(spec)
        generator = seed.child("devices").numpy()
        # Who is in which group says nothing about its number, and so nothing about its data.
        member = generator.permutation(np.repeat(np.arange(len(groups.groups)), _sizes(groups.groups, count)))
        columns = {name: np.empty(count) for name in (*_LINK, *_DEVICE)}
        for place, group in enumerate(groups.groups):
            rows = member == place
            size = int(rows.sum())
            for name, column in columns.items():
                value = getattr(group.profile.link if name in _LINK else group.profile, name)
                column[rows] = _drawn(value, group.spread.get(name), size, generator)
        columns["phase"] = generator.random(count)
        return cls(columns)


def read_groups(spec: Mapping[str, Any] | str) -> Groups:
    """Groups from a mapping, a YAML file, or by the name of a population of the package.

    Raises
    ------
    ConfigError
        There is no such file or name, or it has a wrong key or value.
    """
    where = spec if isinstance(spec, str) else "given"
    try:
        return Groups.model_validate(yaml.safe_load(_text(spec)) if isinstance(spec, str) else spec)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the devices {where}: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"the devices {where} are wrong: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        ) from error


def ready() -> list[str]:
    """Names of the populations that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files(__package__) / "profiles"


def _text(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return Path(name).read_text(encoding="utf-8")
    if name not in ready():
        raise ConfigError(f"there are no devices '{name}'", hint=f"give a YAML file, or one of {', '.join(ready())}")
    return str((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _sizes(groups: tuple[Group, ...], count: int) -> NDArray[np.int64]:
    """Clients per group: as counted, the others by largest remainder."""
    sizes = np.array([g.count for g in groups], np.int64)
    shares = np.array([0.0 if g.count else g.share for g in groups])
    left = count - int(sizes.sum())
    if left < 0 or (left > 0 and not shares.any()):
        raise ConfigError(f"the devices count {sizes.sum()} clients, the run has {count}")
    if left:
        exact = left * shares / shares.sum()
        sizes += np.floor(exact).astype(np.int64)
        order = np.argsort(-(exact - np.floor(exact)), kind="stable")
        sizes[order[: count - int(sizes.sum())]] += 1
    return sizes


def _drawn(
    value: float, spread: Spread | None, size: int, generator: np.random.Generator
) -> NDArray[np.float64] | float:
    if spread is None:
        return value
    if spread.uniform is not None:
        return generator.uniform(*spread.uniform, size)
    return value * np.exp(generator.normal(0.0, spread.lognormal or 0.0, size))
