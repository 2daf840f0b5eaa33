"""Changes of the layers' owners during training: after a loss of ranks, and by rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from .assignment import reassign
from .running_average import rotate_factors

if TYPE_CHECKING:
    from .preconditioner import DPKFAC


def reassign_layers(kfac: DPKFAC, alive_ranks: Sequence[int]) -> None:
    """Give the layers of lost owners to the ranks of the current group, see :meth:`DPKFAC.reassign`."""
    if len(alive_ranks) != kfac.ranks:
        raise ConfigError(f"reassign: {len(alive_ranks)} ranks are alive, but the group has {kfac.ranks}")
    options = kfac.options
    kfac.owners, lost = reassign(
        kfac.layers, kfac.owners, alive_ranks, options.assignment, kfac.cost(), options.node_speed
    )
    # If all ranks have the factors of all layers, only inverses were lost.
    kfac.missing = set(kfac.owners) if kfac.scheme.source == "allreduce" else lost
    kfac.apply_owners()


def rotate_owners(kfac: DPKFAC) -> None:
    """Move every layer's factors to the next rank, which inverts them in the next step; a collective."""
    if kfac.ranks == 1:
        return
    incoming, factors = rotate_factors(kfac.factors, kfac.layers, kfac.owners, kfac.collectives, kfac.reference)
    kfac.owners = {name: (owner + 1) % kfac.ranks for name, owner in kfac.owners.items()}
    kfac.factors.unpack(incoming, factors)
    kfac.apply_owners()
