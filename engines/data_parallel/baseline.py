"""The baseline of reports: the bytes of float32 gradients all-reduced in each step, as in plain data-parallel SGD."""

from __future__ import annotations

from collections.abc import Sequence

from ..collective.volumes import all_reduce_total

NAME = "plain data-parallel SGD"


def baselines(formations: Sequence[tuple[int, int, str]], steps: int, parameters: int) -> dict[str, int]:
    """Return the baseline's bytes by name; each step counts once.

    Parameters
    ----------
    formations : sequence of (int, int, str)
        First step, number of ranks and transport of each group. Steps before the first group, in a resumed run, count
        as if its ranks had done them.
    steps : int
        Steps of the whole run.
    parameters : int
        Number of trainable parameters.
    """
    starts = [0, *(step for step, _, _ in formations[1:]), steps]
    total = 0
    for index, (_, ranks, transport) in enumerate(formations):
        total += 4 * (starts[index + 1] - starts[index]) * all_reduce_total(parameters, ranks, transport)
    return {NAME: total}
