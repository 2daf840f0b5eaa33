"""Mutated inputs for every decoder, at the real limits and in little memory: only typed errors, no crash, no stall.

Each target starts from valid inputs of its own and mutates them: bits and bytes flipped, slices cut, doubled, moved and
spliced, lengths replaced by extreme numbers. A child process decodes them under a limit on its memory. Wrong is an
exception of another type than the decoder documents, the death of the process, or more than a second for one input.

    python benchmarks/fuzz.py --inputs 10_000_000 --json fuzz.json
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _common import Table, finish, gate, parser
from _fuzz_targets import Target, targets

CLAIM = "every decoder answers any input with a message or a typed error, within a gigabyte and a second"
#: Memory that a child may allocate beyond what it has after its imports.
_MEMORY = 1 << 30
_SLOWEST_SECONDS = 1.0
_EXTREMES = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 20,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a variant of ``data`` after one to four mutations."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = len(found)
        at = rng.randrange(size + 1)
        match rng.randrange(9):
            case 0 if size:
                found[at % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                found[at % size] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del found[at : at + rng.choice((1, 2, 7, 64, 1000))]
            case 3:
                found[at:at] = found[at : at + rng.choice((1, 4, 64))]
            case 4:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 5:
                form = rng.choice(("<H", "<I", "<Q", ">I", ">Q"))
                width = struct.calcsize(form)
                found[at : at + width] = struct.pack(form, rng.choice(_EXTREMES) & ((1 << 8 * width) - 1))
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                found[at : at + 50] = other[start : start + rng.choice((10, 100, 1000))]
            case 7:
                del found[at:]
            case _:
                cut = rng.randrange(size + 1)
                found = found[cut:] + found[:cut]
    return bytes(found)


# ---- running ---------------------------------------------------------------------------------------------------------


def _limit_memory() -> None:
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


def _child(index: int, name: str, count: int, seed: int, pipe: Any) -> None:
    """Decode ``count`` mutated inputs of one target; sends figures, or the input at which it failed."""
    target = targets()[index]
    corpus = list(target.corpus())
    for data in corpus:
        target.decode(data)  # valid, and imports what it needs
    _limit_memory()
    rng, refused, slowest = random.Random(seed), 0, 0.0
    last = b""
    try:
        for number in range(count):
            last = mutate(rng.choice(corpus), corpus, rng)
            start = time.perf_counter()
            try:
                target.decode(last)
            except target.errors:
                refused += 1
            slowest = max(slowest, time.perf_counter() - start)
            if number % 10_000 == 0:
                pipe.send({"alive": number})
    except BaseException as error:
        pipe.send({"wrong": f"{type(error).__name__}: {error}"[:300], "input": last[:2000].hex(), "count": number})
        return
    pipe.send({"count": count, "refused": refused, "slowest": slowest})


def _run(index: int, target: Target, count: int, seed: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(index, target.name, count, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    result: dict[str, Any] = {"count": 0, "wrong": "the process died"}
    try:
        while "alive" in (message := mine.recv()):
            pass
        result = message
    except EOFError:
        process.join()
        result["wrong"] = f"the process died (exit code {process.exitcode})"
    process.join()
    return result


def run(inputs: int) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Fuzz every target in turn; yields its figures."""
    every = targets()
    weight = sum(target.weight for target in every)
    for index, target in enumerate(every):
        count = max(100, round(inputs * target.weight / weight))
        start = time.monotonic()
        found = _run(index, target, count, seed=index)
        found["seconds"] = time.monotonic() - start
        print(f"{target.name}: {found}"[:400], flush=True)
        yield target, found


def main() -> int:
    """Fuzz and report."""
    cli = parser(__doc__)
    cli.add_argument("--inputs", type=int, default=10_000_000, help="mutated inputs of all decoders together")
    options = cli.parse_args()
    found = list(run(20_000 if options.quick else options.inputs))
    total = sum(result["count"] for _, result in found)
    wrong = [f"{target.name}: {result['wrong']}" for target, result in found if "wrong" in result]
    slowest = max((result.get("slowest", 0.0) for _, result in found), default=0.0)
    rows = [
        [
            t.name,
            f"{r['count']:,}",
            f"{r.get('refused', 0):,}",
            f"{1000 * r.get('slowest', 0):.0f}",
            r.get("wrong", "–"),
        ]
        for t, r in found
    ]
    return finish(
        "fuzz",
        options,
        scale=f"{total:,} inputs, {_MEMORY >> 20} MiB of memory for each process",
        claim=CLAIM,
        figures={"targets": [{"name": t.name, **r} for t, r in found]},
        gates=[
            gate("inputs", total, ">= 10,000,000", None if options.quick else total >= 9_900_000),
            gate("decoders that died or raised another error", len(wrong), "= 0", not wrong),
            gate("slowest input, seconds", slowest, f"<= {_SLOWEST_SECONDS:g}", slowest <= _SLOWEST_SECONDS),
        ],
        tables=[Table("Mutated inputs", ["decoder", "inputs", "refused", "slowest, ms", "wrong"], rows)],
    )


if __name__ == "__main__":
    sys.exit(main())
