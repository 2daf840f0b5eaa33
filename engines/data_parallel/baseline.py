"""What reports compare a run's bytes with: float32 gradients all-reduced in each step, as plain SGD does."""

from __future__ import annotations

from collections.abc import Sequence

from ..collective.volumes import all_reduced

NAME = "plain data-parallel SGD"


def baselines(formations: Sequence[tuple[int, int, str]], steps: int, parameters: int) -> dict[str, int]:
    """Bytes of it, each step once.

    Parameters
    ----------
    formations : sequence of (int, int, str)
        Ranks as they were formed: at which step, how many, by which transport. What came before the first, in a run
        that is resumed, counts as if by the same.
    steps, parameters : int
        Of the whole run; numbers that are trained.
    """
    starts = [0, *(step for step, _, _ in formations[1:]), steps]
    total = 0
    for place, (_, ranks, transport) in enumerate(formations):
        total += 4 * (starts[place + 1] - starts[place]) * all_reduced(parameters, ranks, transport)
    return {NAME: total}
