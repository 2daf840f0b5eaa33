"""Arms, stored results and summary table of the accuracy benchmark of split fine-tuning (``sft_accuracy.py``).

``python benchmarks/sft_arms.py RESULTS.jsonl [--json]`` prints the table of the runs finished so far.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _common import Table

#: Bits per number of the encodings used by the arms.
WIDTHS = {"raw": 32, "int8": 8, "int4": 4, "int2": 2}


@dataclass(frozen=True)
class Arm:
    """One training configuration; ``cut=None`` is the unsplit model.

    ``place`` selects the split block as a function of the number of blocks L. ``up`` and ``down`` are the encodings of
    codes and their gradients. ``goal`` is the largest acceptable loss of accuracy on SST-2 against unsplit, in points.
    """

    name: str
    cut: str | None = None
    place: str = ""
    rank: int = 0
    up: str = "raw"
    down: str = "raw"
    residual: str = "project"
    init: str = "pca"
    codec_lr: float = 5.0
    decoder: str = "linear"
    sentence_vector: int = 0
    warmup: float = 0.1
    goal: float | None = None

    def settings(self) -> dict[str, Any]:
        """The method's settings of this arm, without the block: see :meth:`block`."""
        if self.cut is None:
            return {"warmup": self.warmup}
        return {
            "cut": self.cut,
            "rank": self.rank,
            "up": self.up,
            "down": self.down,
            "residual": self.residual,
            "init": self.init,
            "codec_lr_factor": self.codec_lr,
            "decoder": self.decoder,
            "sentence_vector": self.sentence_vector,
            "warmup": self.warmup,
        }

    def block(self, blocks: int) -> int:
        """The split block, counted from 1."""
        return {"L-1": blocks - 1, "L/2": blocks // 2}[self.place]

    def code_ratio(self, width: int) -> float:
        """Bytes of a vanilla split (``width`` fp32 values per token) divided by bytes of the codes, both ways."""
        return 1.0 if self.cut is None else 64 * width / (self.rank * (WIDTHS[self.up] + WIDTHS[self.down]))

    @property
    def key(self) -> str:
        """Name and hash of all settings but the goal, so that results of other settings are not mixed up."""
        settings = json.dumps({**asdict(self), "goal": None}, sort_keys=True).encode()
        return f"{self.name}#{hashlib.blake2b(settings, digest_size=4).hexdigest()}"


def arms() -> list[Arm]:
    """List the arms with goals: unsplit, the paper's, and the recipe at four rates, the latter two at both places."""
    goals = {"L-1": {32: 0.5, 8: 0.5, 4: 1.0, 2: 1.5}, "L/2": {32: 1.0}}
    found = [Arm("unsplit")]
    for place, by_rank in goals.items():
        found.append(Arm(f"paper r4 fp32 {place}", "ffn_svd", place, 4, residual="drop", init="svd", codec_lr=1.0))
        found += [
            Arm(f"recipe r{rank} int4 {place}", "ffn_svd", place, rank, "int4", "int4", goal=by_rank.get(rank))
            for rank in (32, 8, 4, 2)
        ]
    return found


def light() -> list[Arm]:
    """List experiments to close the accuracy gap of a split at L/2 with 16 bytes per token and direction.

    A sentence vector of 32 values, fp16 up and int8 down, costs as much as four channels of a sentence of average
    length, so these arms have eight channels fewer. The "why" arms send more, to separate the loss due to the rank, to
    the quantization of codes, and to that of gradients.
    """
    base = Arm("light", "ffn_svd", "L/2", 32, "int4", "int4")
    changes: dict[str, dict[str, Any]] = {
        "why r32 raw": {"up": "raw", "down": "raw"},
        "why r32 int4 up, raw down": {"down": "raw"},
        "why r32 raw up, int4 down": {"up": "raw"},
        "why r384 raw": {"rank": 384, "up": "raw", "down": "raw"},
        "r31 int4": {"rank": 31},
        "codec lr 1": {"codec_lr": 1.0},
        "codec lr 10": {"codec_lr": 10.0},
        "warm-up 30%": {"warmup": 0.3},
        "mlp": {"decoder": "mlp"},
        "mlp, codec lr 1": {"decoder": "mlp", "codec_lr": 1.0},
        "r24 + sentence 32": {"rank": 24, "sentence_vector": 32},
        "r24 + sentence 32, mlp": {"rank": 24, "sentence_vector": 32, "decoder": "mlp"},
        "r64 int2": {"rank": 64, "up": "int2", "down": "int2"},
        "r64 int2, mlp": {"rank": 64, "up": "int2", "down": "int2", "decoder": "mlp"},
        "r42 int4 up, int2 down": {"rank": 42, "down": "int2"},
        "r42 int2 up, int4 down": {"rank": 42, "up": "int2"},
        "r16 int8": {"rank": 16, "up": "int8", "down": "int8"},
        "r48 int4 (64x)": {"rank": 48},
    }
    return [replace(base, name=f"light {name}", **change) for name, change in changes.items()]


def select(pattern: str | None) -> list[Arm]:
    """Select the arms with goals, or those whose names match a glob; always includes unsplit."""
    if pattern is None:
        return arms()
    return [a for a in (*arms(), *light()) if a.cut is None or fnmatch.fnmatchcase(a.name, pattern)]


@dataclass(frozen=True)
class Result:
    """One finished run. Scores are fractions or correlations; bytes are those of training, both ways."""

    task: str
    setup: str
    arm: str
    seed: int
    dev: float
    unused: float | None
    code_bytes: int
    payload_bytes: int
    frame_bytes: int
    vanilla_bytes: int
    seconds: float


class Results:
    """Finished runs in a file of JSON lines; an interrupted benchmark skips the runs in it.

    ``setup`` in every result names what all arms share (sizes, epochs, steps), to keep scales apart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.all: list[Result] = []
        if path.exists():
            # A line cut off by a kill has no newline and is dropped.
            whole = path.read_bytes().rpartition(b"\n")
            self.all = [Result(**json.loads(line)) for line in whole[0].splitlines() if line.strip()]
            if whole[2]:
                os.truncate(path, len(whole[0]) + len(whole[1]))

    def find(self, task: str, setup: str, arm: Arm, seed: int) -> Result | None:
        """Return the finished run with these settings, or None."""
        key = (task, setup, arm.key, seed)
        return next((r for r in self.all if (r.task, r.setup, r.arm, r.seed) == key), None)

    def add(self, result: Result) -> None:
        """Append a result and sync it to disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.all.append(result)


def summary(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Summarize results by task, setup and arm: mean scores, and gaps to unsplit in points, paired by seed.

    Gaps use only seeds for which the unsplit model has finished too. ``sd`` is None for a single seed.
    """
    by_arm: dict[tuple[str, str, str], dict[int, Result]] = {}
    for r in results:
        by_arm.setdefault((r.task, r.setup, r.arm), {})[r.seed] = r
    unsplit = arms()[0].key
    known = {arm.key: arm for arm in (*arms(), *light())}
    rows = []
    for (task, setup, key), runs in by_arm.items():
        base = by_arm.get((task, setup, unsplit), {})
        paired = [(runs[s], base[s]) for s in sorted(runs) if s in base]
        kinds = ("vanilla", "code", "payload", "frame")
        vanilla, code, payload, frame = (sum(getattr(r, f"{k}_bytes") for r in runs.values()) for k in kinds)
        dev = _spread([100 * (a.dev - b.dev) for a, b in paired])
        goal = known[key].goal if key in known and task == "sst2" else None
        rows.append(
            {
                "task": task,
                "setup": setup,
                "arm": key,
                "seeds": len(runs),
                "dev": statistics.fmean(r.dev for r in runs.values()),
                "unused": _mean([r.unused for r in runs.values()]),
                "gap_dev": dev,
                "gap_unused": _spread(
                    [100 * (a.unused - b.unused) for a, b in paired if a.unused is not None and b.unused is not None]
                ),
                "goal": goal,
                "code_bytes": code,
                "payload_bytes": payload,
                "frame_bytes": frame,
                "code_ratio": vanilla / code if code else None,
                "payload_ratio": vanilla / payload if payload else None,
                "seconds": statistics.fmean(r.seconds for r in runs.values()),
            }
        )
    return rows


def _mean(values: list[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return statistics.fmean(present) if present else None


def _spread(gaps: list[float]) -> dict[str, Any] | None:
    if not gaps:
        return None
    sd = statistics.stdev(gaps) if len(gaps) > 1 else None
    return {"mean": statistics.fmean(gaps), "sd": sd, "n": len(gaps), "each": gaps}


def table(rows: Iterable[dict[str, Any]]) -> Table:
    """Table of the summary; bytes are those of training, both ways, with the initial codes."""

    def gap(value: dict[str, Any] | None) -> str:
        if value is None:
            return "–"
        sd = "" if value["sd"] is None else f" ± {value['sd']:.2f}"
        return f"{value['mean']:+.2f}{sd} (n={value['n']})"

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    columns = ["task", "setup", "arm", "dev", "unused", "gap dev, points", "gap unused"]
    columns += ["code MB", "payload MB", "code ratio", "payload ratio"]
    lines = []
    for r in rows:
        cells = [r["task"], r["setup"], r["arm"].partition("#")[0], number(r["dev"], ".4f")]
        cells += [number(r["unused"], ".4f"), gap(r["gap_dev"]), gap(r["gap_unused"])]
        cells += [number(r[f"{kind}_bytes"] / r["seeds"] / 1e6 or None, ".3f") for kind in ("code", "payload")]
        lines.append([*cells, number(r["code_ratio"], ".1f"), number(r["payload_ratio"], ".1f")])
    return Table("Split fine-tuning against the unsplit model, paired by seed", columns, lines)


def main() -> None:
    """Print the table of a results file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead")
    options = parser.parse_args()
    if not options.results.exists():
        parser.error(f"{options.results} does not exist")
    rows = summary(Results(options.results).all)
    print(json.dumps(rows, indent=1) if options.json else table(rows).markdown())


if __name__ == "__main__":
    main()
