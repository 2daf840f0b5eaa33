"""Assignment of layers to owner ranks: deterministic, so that all ranks compute the same without communication.

See ``docs/methods/dp_kfac.md``, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...core.errors import ConfigError
from .layers import Layer

Rule: TypeAlias = Literal["lpt", "round_robin"]


@dataclass(frozen=True)
class Cost:
    """Estimate of an owner's multiply-adds per layer and step.

    Parameters
    ----------
    factor_steps, inverse_steps : int
        Steps between updates of factors and of inverses.
    inverse_weight : float
        Cost of an inverse in units of n³: about 9 for an eigendecomposition, 1 for Cholesky.
    rows : mapping of str, optional
        Rows N S of each layer's patch matrix in a batch; without them only the inverses count.
    """

    factor_steps: int = 1
    inverse_steps: int = 1
    inverse_weight: float = 9.0
    rows: Mapping[str, int] | None = None

    def of(self, layer: Layer) -> float:
        """Return the cost of one layer."""
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
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the owner of each layer by name.

    Parameters
    ----------
    layers : sequence of Layer
    ranks : int
        Number of ranks.
    rule : {"lpt", "round_robin"} or mapping
        ``lpt``, longest processing time first: layers in descending order of cost, each to the rank that would finish
        it first. ``round_robin``: in module order. A mapping of names to ranks is used as given.
    cost : Cost, optional
    speed : sequence of float, optional
        Relative speed of each rank; a rank of speed 2 gets twice the work.
    fixed : mapping, optional
        Owners that must not change; only the other layers are assigned.

    Raises
    ------
    ConfigError
        A mapping has an unknown name or rank or lacks a layer, or ``speed`` does not fit the ranks.
    """
    if not isinstance(rule, str):
        return _validate_table(layers, ranks, rule)
    owners = dict(fixed or {})
    free = [layer for layer in layers if layer.name not in owners]
    if rule == "round_robin":
        return {**owners, **{layer.name: layer.index % ranks for layer in free}}
    speeds = list(speed) if speed is not None else [1.0] * ranks
    if len(speeds) != ranks or min(speeds) <= 0:
        raise ConfigError(
            f"node_speed has {len(speeds)} values for {ranks} ranks", hint="give one value above 0 for each rank"
        )
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


def reassign(
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    alive: Sequence[int],
    rule: Rule | Mapping[str, int],
    cost: Cost,
    speed: Sequence[float] | None,
) -> tuple[dict[str, int], set[str]]:
    """Assign the layers of lost ranks to the remaining ranks.

    Parameters
    ----------
    owners : mapping of str
        Owners so far, as old ranks. Remaining ranks keep their layers.
    alive : sequence of int
        Old ranks of the remaining processes, in the order of their new ranks.

    Returns
    -------
    owners : dict of str
        New owners, as new ranks.
    lost : set of str
        Layers whose owner was lost.
    """
    new_rank = {old: new for new, old in enumerate(alive)}
    fixed = {name: new_rank[owner] for name, owner in owners.items() if owner in new_rank}
    speeds = None if speed is None else [speed[old] for old in alive]
    found = assign(layers, len(alive), rule if isinstance(rule, str) else "lpt", cost, speeds, fixed)
    return found, set(owners) - set(fixed)


def _validate_table(layers: Sequence[Layer], ranks: int, owners: Mapping[str, int]) -> dict[str, int]:
    names = {layer.name for layer in layers}
    if wrong := sorted(set(owners) ^ names):
        what = "is not a layer" if wrong[0] in owners else "has no owner"
        raise ConfigError(
            f"assignment: '{wrong[0]}' {what}", hint="name every Linear and Conv2d exactly once, and nothing else"
        )
    if outside := [name for name, rank in owners.items() if not 0 <= rank < ranks]:
        raise ConfigError(f"assignment: '{outside[0]}' is assigned to rank {owners[outside[0]]} of {ranks} ranks")
    return dict(owners)


def load_imbalance(layers: Sequence[Layer], owners: Mapping[str, int], ranks: int, cost: Cost | None = None) -> float:
    """Return the load of the busiest rank divided by the mean load."""
    cost = cost or Cost()
    loads = [0.0] * ranks
    for layer in layers:
        loads[owners[layer.name]] += cost.of(layer)
    return max(loads) * ranks / sum(loads) if layers else 1.0
