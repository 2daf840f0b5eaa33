"""Items of a work queue, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...core.errors import ConfigError
from ...core.message import Array

#: Value of a metric.
Value: TypeAlias = bool | int | float | str

#: Most metrics and times of one item together.
MOST_VALUES = 200
#: Longest text among them, in characters.
MOST_TEXT = 2_000


@dataclass(frozen=True)
class WorkItem:
    """A piece of work that needs no other.

    Attributes
    ----------
    config : Mapping
        Settings of the item; JSON-able.
    seed : int
        Root of the item's seed tree, 0 to 2^63 - 1.
    inputs : Mapping[str, str]
        SHA-256 of each input by name, hexadecimal; see :meth:`.workload.WorkQueueWorkload.inputs`.
    """

    config: Mapping[str, Any]
    seed: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 of the content, hexadecimal: equal items have equal results, on any node and in any run."""
        content = {"config": self.config, "seed": self.seed, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What the work of an item gave.

    Attributes
    ----------
    metrics : Mapping
        Numbers and texts by name. They depend on the item alone.
    measured : Mapping[str, float]
        Times and rates by name, which differ from run to run.
    tensors : Mapping[str, Array]
        Arrays by name; NumPy's own numbers and bool.

    Raises
    ------
    ConfigError
        There are more than :data:`MOST_VALUES` metrics, or a value is of another type or too long.
    """

    metrics: Mapping[str, Value] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (count := len(self.metrics) + len(self.measured)) > MOST_VALUES:
            raise ConfigError(f"an item has {count} metrics, at most {MOST_VALUES} are possible")
        for name, value in self.metrics.items():
            if type(value) not in (bool, int, float, str):
                raise ConfigError(f"the metric '{name}' is a {type(value).__name__}, not a number or a text")
            if isinstance(value, str) and len(value) > MOST_TEXT:
                raise ConfigError(f"the metric '{name}' has {len(value)} characters, at most {MOST_TEXT} are possible")


@dataclass(frozen=True)
class ItemResult:
    """A finished item, or one that failed for good.

    Attributes
    ----------
    index : int
        Position of the item in its queue.
    item : WorkItem
    outcome : Outcome or None
        None if it failed.
    error : str
        Why it failed; empty if it did not.
    node : str
        Where it was done.
    seconds : float
        How long that took there.
    attempts : int
        How often it was dealt.
    """

    index: int
    item: WorkItem
    outcome: Outcome | None
    error: str = ""
    node: str = ""
    seconds: float = 0.0
    attempts: int = 1
