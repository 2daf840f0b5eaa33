"""What a rank sends in each collective, in numbers, by the algorithms that move them: gloo's, and those of a ring."""

from __future__ import annotations


def chunk(numbers: int, ranks: int, rank: int) -> int:
    """Numbers of a rank's chunk when all are cut as evenly as possible."""
    return numbers // ranks + (rank < numbers % ranks)


def all_reduce_numbers(numbers: int, ranks: int, rank: int) -> int:
    """A ring all-reduce; 2 (P - 1) n over all ranks."""
    return 2 * (numbers - chunk(numbers, ranks, rank)) if ranks > 1 else 0


def all_reduced(numbers: int, ranks: int, transport: str) -> int:
    """Numbers that all-reducing as many takes: around a ring of ranks, or up to the server and down again."""
    if ranks == 1:
        return 0
    return 2 * ranks * numbers if transport == "star" else 2 * (ranks - 1) * numbers


def broadcast_copies(ranks: int, rank: int, source: int) -> int:
    """How often a rank sends the buffer on in a binomial tree; P - 1 over all ranks."""
    place = (rank - source) % ranks
    copies, bit = 0, 1
    while bit < ranks:
        if place % (2 * bit) == 0 and place + bit < ranks:
            copies += 1
        bit *= 2
    return copies


def gloo_reduce_numbers(numbers: int, ranks: int, rank: int, target: int) -> int:
    """gloo's reduce: a reduce-scatter and a gather, (P - 1)(1 + 1/P) n over all ranks."""
    if ranks == 1:
        return 0
    own = chunk(numbers, ranks, rank)
    return numbers - own + (0 if rank == target else own)


def all_gather_numbers(numbers: int, ranks: int) -> int:
    """A ring all-gather of ``numbers`` of each rank; (P - 1) P n over all ranks."""
    return (ranks - 1) * numbers
