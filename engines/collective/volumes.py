"""Elements that a rank sends in each collective, as gloo's and the ring algorithms move them.

P is the number of ranks, n the number of elements of the tensor. Receiving is not counted.
"""

from __future__ import annotations


def chunk(elements: int, ranks: int, rank: int) -> int:
    """Return the size of a rank's chunk when a tensor is split as evenly as possible."""
    return elements // ranks + (rank < elements % ranks)


def all_reduce_elements(elements: int, ranks: int, rank: int) -> int:
    """Return what a rank sends in a ring all-reduce; 2 (P - 1) n over all ranks."""
    return 2 * (elements - chunk(elements, ranks, rank)) if ranks > 1 else 0


def all_reduce_total(elements: int, ranks: int, transport: str) -> int:
    """Return what all ranks send and are sent in an all-reduce: around a ring, or to the server and back."""
    if ranks == 1:
        return 0
    return 2 * ranks * elements if transport == "star" else 2 * (ranks - 1) * elements


def broadcast_copies(ranks: int, rank: int, source: int) -> int:
    """Return how many copies a rank sends in a binomial-tree broadcast; P - 1 over all ranks."""
    position = (rank - source) % ranks
    copies, bit = 0, 1
    while bit < ranks:
        if position % (2 * bit) == 0 and position + bit < ranks:
            copies += 1
        bit *= 2
    return copies


def gloo_reduce_elements(elements: int, ranks: int, rank: int, target: int) -> int:
    """Return what a rank sends in gloo's reduce (reduce-scatter, then gather); (P - 1)(1 + 1/P) n over all ranks."""
    if ranks == 1:
        return 0
    own = chunk(elements, ranks, rank)
    return elements - own + (0 if rank == target else own)


def all_gather_elements(elements: int, ranks: int) -> int:
    """Return what a rank sends in a ring all-gather of ``elements`` per rank; (P - 1) P n over all ranks."""
    return (ranks - 1) * elements
