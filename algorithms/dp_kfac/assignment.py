"""Which rank owns which layer: deterministic, so that all ranks find the same without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...core.errors import ConfigError
from .layers import Layer

Rule: TypeAlias = Literal["lpt", "round_robin"]


@dataclass(frozen=True)
class Cost:
    """Multiply-adds that an owner spends on a layer, per step.

    Parameters
    ----------
    factor_steps, inverse_steps : int
        Steps between updates of factors and of inverses.
    inverse_weight : float
        How many n³ an inverse takes: about 9 by eigendecomposition, 1 by Cholesky.
    rows : mapping of str, optional
        Rows of each layer's patch matrix in a batch (N S); without them only the inverses count.
    """

    factor_steps: int = 1
    inverse_steps: int = 1
    inverse_weight: float = 9.0
    rows: Mapping[str, int] | None = None

    def of(self, layer: Layer) -> float:
        """The cost of one layer."""
        a, g = float(layer.a), float(layer.g)
        inverse = self.inverse_weight * (a**3 + g**3) / self.inverse_steps
        if self.rows is None:
            return inverse
        factor = self.rows.get(layer.name, 0) * 2 * (a * a + g * g) / self.factor_steps
        return factor + inverse + 4 * a * g * (a + g)


def assign(
    layers: Sequence[Layer],
    ranks: int,
    rule: Rule | Mapping[str, int] = "lpt",
    cost: Cost | None = None,
    speed: Sequence[float] | None = None,
    kept: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Owner of each layer by name.

    Parameters
    ----------
    rule : "lpt", "round_robin" or mapping
        Longest processing time first: the heaviest layer goes to the rank that is done with it first. A mapping of
        names to ranks is taken as it is.
    speed : sequence of float, optional
        Of each rank, relative; a rank of speed 2 gets twice the work.
    kept : mapping, optional
        Layers that stay where they are; the others are added to them.

    Raises
    ------
    ConfigError
        A name or rank of a mapping is unknown, a layer is missing in it, or speeds don't fit the ranks.
    """
    if not isinstance(rule, str):
        return _given(layers, ranks, rule)
    owners = dict(kept or {})
    free = [layer for layer in layers if layer.name not in owners]
    if rule == "round_robin":
        return {**owners, **{layer.name: layer.index % ranks for layer in free}}
    speeds = list(speed) if speed is not None else [1.0] * ranks
    if len(speeds) != ranks or min(speeds) <= 0:
        raise ConfigError(f"node_speed has {len(speeds)} numbers for {ranks} ranks", hint="give each rank one above 0")
    cost = cost or Cost()
    loads = [0.0] * ranks
    for layer in layers:
        if layer.name in owners:
            loads[owners[layer.name]] += cost.of(layer) / speeds[owners[layer.name]]
    for layer in sorted(free, key=lambda layer: (-cost.of(layer), layer.index)):
        best = min(range(ranks), key=lambda rank: (loads[rank] + cost.of(layer) / speeds[rank], rank))
        owners[layer.name] = best
        loads[best] += cost.of(layer) / speeds[best]
    return owners


def reassigned(
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    alive: Sequence[int],
    rule: Rule | Mapping[str, int],
    cost: Cost,
    speed: Sequence[float] | None,
) -> tuple[dict[str, int], set[str]]:
    """Owners among the ranks that are left, and the layers whose owners are not.

    Parameters
    ----------
    owners : mapping of str
        Before, by their old ranks; who is left keeps what it has.
    alive : sequence of int
        Old ranks, in the order of the new ones.
    """
    place = {old: new for new, old in enumerate(alive)}
    kept = {name: place[owner] for name, owner in owners.items() if owner in place}
    left = None if speed is None else [speed[old] for old in alive]
    found = assign(layers, len(alive), rule if isinstance(rule, str) else "lpt", cost, left, kept)
    return found, set(owners) - set(kept)


def _given(layers: Sequence[Layer], ranks: int, owners: Mapping[str, int]) -> dict[str, int]:
    names = {layer.name for layer in layers}
    if wrong := sorted(set(owners) ^ names):
        what = "is no layer" if wrong[0] in owners else "has no owner"
        raise ConfigError(
            f"assignment: '{wrong[0]}' {what}", hint="name every Linear and Conv2d once, and nothing else"
        )
    if outside := [name for name, rank in owners.items() if not 0 <= rank < ranks]:
        raise ConfigError(f"assignment: '{outside[0]}' goes to rank {owners[outside[0]]} of {ranks}")
    return dict(owners)


def balance(layers: Sequence[Layer], owners: Mapping[str, int], ranks: int, cost: Cost | None = None) -> float:
    """Load of the busiest rank over the mean load."""
    cost = cost or Cost()
    loads = [0.0] * ranks
    for layer in layers:
        loads[owners[layer.name]] += cost.of(layer)
    return max(loads) * ranks / sum(loads) if layers else 1.0
