"""Settings of a sweep; a YAML file with them is a scenario of ``farshore sweep``."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...engines.work_queue.config import WorkQueueConfig

#: Most items of a sweep.
MOST_ITEMS = 100_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


class Halving(BaseModel):
    """Successive halving: all cells with a small budget, the best of them with a larger one, and so on.

    A budget is a setting of the method; each rung runs from the beginning, so results do not depend on where it runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(description="setting that is the budget, e.g. epochs")
    least: int = Field(ge=1, description="budget of the first rung")
    most: int = Field(ge=1, description="budget of the last rung")
    factor: int = Field(2, ge=2, description="of the cells, one in this many is kept; the budget grows by it")

    @classmethod
    def parse(cls, text: str) -> Halving:
        """Read ``epochs=5..40`` or ``epochs=5..40/3``; raises ValueError."""
        match = re.fullmatch(r"([^=\s]+)=(\d+)\.\.(\d+)(?:/(\d+))?", text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not of the form KEY=FIRST..LAST, e.g. epochs=5..40, or epochs=5..40/3")
        key, least, most, factor = match.groups()
        return cls(key=key, least=int(least), most=int(most), factor=int(factor or 2))

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.most <= self.least:
            raise ValueError(f"the last budget, {self.most}, does not exceed the first, {self.least}")
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budget of each rung."""
        found = [self.least]
        while found[-1] * self.factor < self.most:
            found.append(found[-1] * self.factor)
        return (*found, self.most)


class SweepConfig(WorkQueueConfig):
    """A method, the settings to try, and the seeds."""

    method: str = Field(description="the method; it runs on one node alone")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the method, for all cells")
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="values to try by setting; keys may be dotted; cells are all combinations"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each cell runs once per seed: a list, or 0..9")
    metric: str = Field("", description="metric by which cells are compared; by default a score or the loss")
    best: Literal["auto", "max", "min"] = Field(
        "auto", description="whether high or low values are better; auto: by its name"
    )
    halving: Halving | None = Field(None, description="stop bad cells early; by text as epochs=5..40")
    threads: int = Field(1, ge=1, le=1024, description="threads of torch and BLAS per item; results depend on them")
    inputs: tuple[str, ...] = Field((), description="data sets of the server, files, that are sent to each node once")

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        return read_seeds(value) if isinstance(value, str | int) else value

    @field_validator("halving", mode="before")
    @classmethod
    def _read_halving(cls, value: Any) -> Any:
        return Halving.parse(value) if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        _check_differ("seeds", seeds)
        if any(not 0 <= seed < 1 << 63 for seed in seeds):
            raise ValueError("a seed is from 0 to 2^63 - 1")
        return seeds

    @field_validator("grid")
    @classmethod
    def _values_differ(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in grid.items():
            if not values:
                raise ValueError(f"'{key}' has no values")
            _check_differ(key, values)
        return grid

    @model_validator(mode="after")
    def _check_sweep(self) -> Self:
        if self.count > MOST_ITEMS:
            raise ValueError(f"the sweep has {self.count:,} items, at most {MOST_ITEMS:,} are possible")
        if self.halving is not None:
            if self.halving.key in self.grid:
                raise ValueError(f"'{self.halving.key}' is the budget of halving and cannot be in the grid")
            if not self.metric:
                raise ValueError("halving compares cells while it runs: give the metric")
        return self

    @property
    def count(self) -> int:
        """Items of the first rung."""
        count = len(self.seeds)
        for values in self.grid.values():
            count *= len(values)
        return count


def read_seeds(value: str | int) -> tuple[int, ...]:
    """Read ``3``, ``0..9`` or ``0,1,5..7``; raises ValueError."""
    found: list[int] = []
    for part in str(value).split(","):
        if match := _RANGE.fullmatch(part.strip()):
            found += expand(int(match[1]), int(match[2]))
        elif re.fullmatch(r"\d+", part.strip()):
            found.append(int(part))
        else:
            raise ValueError(f"'{value}' is not a list of seeds: write e.g. 0..9 or 0,1,2")
    return tuple(found)


def expand(first: int, last: int) -> range:
    """Return the integers ``first..last``; raises ValueError if there are none or too many."""
    if last < first:
        raise ValueError(f"{first}..{last} is empty")
    if last - first >= MOST_ITEMS:
        raise ValueError(f"{first}..{last} has more than {MOST_ITEMS:,} values")
    return range(first, last + 1)


def _check_differ(key: str, values: tuple[Any, ...]) -> None:
    seen: list[Any] = []
    for value in values:
        # True and 1 are equal in Python, but not as settings.
        if any(value == other and type(value) is type(other) for other in seen):
            raise ValueError(f"{key} has {value} twice")
        seen.append(value)
