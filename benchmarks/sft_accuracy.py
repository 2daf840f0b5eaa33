"""Accuracy of split fine-tuning against the unsplit model, and the bytes sent by each arm.

Every arm runs the programs of real edges and servers, with one edge; payload and frame bytes come from its ledger. The
dev set and training sentences not used by any arm are scored at the end, the split arms through the quantized wire.
Finished runs are stored in --results; an interrupted one resumes from its checkpoint.

    python benchmarks/sft_accuracy.py --task sst2 --glue GLUE --results sst2.jsonl --json sst2.json
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _common import Gate, finish, gate, parser
from sft_arms import Arm, Result, Results, arms, select, summary, table

from farshore.algorithms.split_fine_tuning.builders import Builder
from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.unsplit import train_unsplit
from farshore.algorithms.split_fine_tuning.workload import WORKLOAD
from farshore.core.errors import DataError
from farshore.core.seeds import Seed
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger
from farshore.simulations.in_process import InProcessRun

CLAIM = "96x less traffic on nine data sets with little impact on accuracy (the paper's abstract; BERT-base, rank 8)"
#: Kinds of transfers that belong to training: activations, gradients, and the initial codes, sent once.
TRAINING = ("activation", "gradient", "codec")
QUICK = {"train": 64, "unused": 32, "dev": 32, "epochs": 1, "seeds": [0], "arms": "recipe r32 int4 L-1"}


class Trainer:
    """Trains the arms at one scale.

    Parameters
    ----------
    options : Namespace
        Command-line options.
    folder : Path
        Folder for checkpoints and ledgers of unfinished runs.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.data = {name: path for name, path in (("glue", options.glue), ("model", options.model)) if path}
        o = options
        size = o.train or "all"
        self.setup = f"{size}x{o.epochs}" + (f", {o.steps} steps" if o.steps else "")
        self.common = {
            "task": o.task,
            "model": "model" if o.model else "minilm",
            "train_samples": o.train,
            "spare_samples": o.unused if o.train else 0,
            "eval_samples": o.dev,
            "epochs": o.epochs,
            "steps": o.steps,
            "eval_every": 1 << 30,  # at the end only: no model selection on dev
            "threads": o.threads,
        }

    def config(self, arm: Arm) -> SplitFineTuning:
        """Build the method's configuration for an arm."""
        config = SplitFineTuning(**self.common, **arm.settings())
        if arm.cut is None:
            return config
        return config.model_copy(update={"block": arm.block(Builder(config, Seed(0), self.find).layers)})

    def find(self, name: str) -> Path:
        """Path of a data set by name."""
        if name not in self.data:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --{name} DIR")
        return Path(self.data[name])

    def train(self, arm: Arm, seed: int) -> Result:
        """Train one arm, resuming from its checkpoint if there is one."""
        name = f"{self.options.task} {self.setup} {arm.key} seed {seed}"
        folder = self.folder / re.sub(r"[^\w.#-]+", "-", name)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        found, sizes = (self._unsplit if arm.cut is None else self._split)(arm, seed, folder)
        result = Result(
            task=self.options.task,
            setup=self.setup,
            arm=arm.key,
            seed=seed,
            dev=found["score"],
            unused=found["score_spare"],
            code_bytes=found.get("code_bytes", 0),
            payload_bytes=sizes[0],
            frame_bytes=sizes[1],
            vanilla_bytes=found.get("vanilla_bytes", 0),
            seconds=round(time.monotonic() - started, 1),
        )
        shutil.rmtree(folder)
        return result

    def _unsplit(self, arm: Arm, seed: int, folder: Path) -> tuple[dict[str, Any], tuple[int, int]]:
        def on_progress(step: int, total: int, _: object) -> None:
            show(arm, seed, step, total)

        found = train_unsplit(self.config(arm), seed, 1, self.find, on_progress, CheckpointStore(folder))
        return found, (0, 0)

    def _split(self, arm: Arm, seed: int, folder: Path) -> tuple[dict[str, Any], tuple[int, int]]:
        with Ledger(folder / "ledger") as ledger:
            found = InProcessRun(
                WORKLOAD,
                self.config(arm),
                folder,
                seed=seed,
                data={name: Path(path) for name, path in self.data.items()},
                recorder=ledger.record,
                on_progress=lambda step, total, _: show(arm, seed, step, total),
                # Called before a checkpoint is saved: rows lost by a kill are recorded again after the restart.
                on_metrics=lambda *_: ledger.flush(),
            ).run()
        return found, training_bytes(folder / "ledger", found["steps"])


def training_bytes(ledger: Path, steps: int) -> tuple[int, int]:
    """Sum the payload and frame bytes of a training run from its ledger.

    Transfers repeated after a restart count once, so that the result is that of an uninterrupted run.
    """
    columns = ("kind", "direction", "step", "micro", "payload_bytes", "frame_bytes")
    rows = read_ledger(ledger).select(list(columns)).to_pylist()
    once = {tuple(r[c] for c in columns[:4]): r for r in rows if r["kind"] in TRAINING}
    for direction, kind in (("up", "activation"), ("down", "gradient")):
        seen = len({key[2] for key in once if key[:2] == (kind, direction)})
        if seen != steps:
            raise DataError(f"{ledger} has the {kind}s of {seen} steps, not of {steps}", hint="delete it, then retrain")
    return sum(r["payload_bytes"] for r in once.values()), sum(r["frame_bytes"] for r in once.values())


def show(arm: Arm, seed: int, step: int, total: int) -> None:
    """Print a progress line on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{arm.name}, seed {seed}: step {step} of {total} ", end="", file=sys.stderr, flush=True)


def gates(rows: list[dict[str, Any]], judged: bool) -> list[Gate]:
    """Gates; accuracy is judged only at full scale and for SST-2."""
    known = {arm.key: arm for arm in arms()}
    found = []
    for row in rows:
        arm = known.get(row["arm"])
        if arm is None or arm.cut is None:
            continue
        for split in ("dev", "unused"):
            if (goal := row["goal"]) is None or (gap := row[f"gap_{split}"]) is None:
                continue
            holds = gap["mean"] >= -goal if judged and gap["n"] >= 3 else None
            found.append(gate(f"{arm.name}: points lost on {split}", -gap["mean"], f"<= {goal}", holds))
        if arm.residual == "project" and row["payload_ratio"]:
            found += _payload_gates(arm, row, judged)
    return found


def _payload_gates(arm: Arm, row: dict[str, Any], judged: bool) -> list[Gate]:
    if arm.rank == 32:
        share = row["payload_ratio"] / row["code_ratio"]
        return [gate(f"{arm.name}: payload ratio / code ratio", share, ">= 0.9", share >= 0.9 if judged else None)]
    if arm.rank == 4:
        ratio = row["payload_ratio"]
        return [gate(f"{arm.name}: payload ratio", ratio, ">= 500", ratio >= 500 if judged else None)]
    return []


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    cli = parser(__doc__)
    cli.add_argument("--results", type=Path, metavar="FILE", help="file for finished runs (JSON lines)")
    cli.add_argument("--task", default=None, help="sst2, cola, rte … (default: sst2, docstrings without --glue)")
    cli.add_argument("--arms", metavar="GLOB", help="names of arms (default: those with goals; 'light*': experiments)")
    cli.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    cli.add_argument("--train", type=int, default=8000, help="training examples; 0 = all, which leaves none unused")
    cli.add_argument("--unused", type=int, default=5000, help="examples left out of training and scored too")
    cli.add_argument("--dev", type=int, default=0, help="scored examples of the dev set; 0 = all")
    cli.add_argument("--epochs", type=int, default=3)
    cli.add_argument("--steps", type=int, default=0, help="stop after this number of steps; 0 = all epochs")
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--model", type=Path, metavar="DIR", help="a transformers model (default: MiniLM)")
    cli.add_argument("--glue", type=Path, metavar="DIR", default=os.environ.get("FARSHORE_GLUE"))
    options = cli.parse_args(arguments)
    options.task = options.task or ("sst2" if options.glue else "docstrings")
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == cli.get_default(name):
                setattr(options, name, value)
    return options


def main() -> int:
    """Train the unfinished arms and report."""
    options = parse_options()
    with ExitStack() as cleanup:
        if options.results is None:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="farshore-accuracy-")))
            options.results = folder / "results.jsonl"
        options.results.parent.mkdir(parents=True, exist_ok=True)
        results = Results(options.results)
        trainer = Trainer(options, options.results.with_suffix(".unfinished"))
        selected = select(options.arms)
        for seed in options.seeds:
            for arm in selected:
                if results.find(options.task, trainer.setup, arm, seed):
                    continue
                result = trainer.train(arm, seed)
                results.add(result)
                unused = "" if result.unused is None else f", unused {result.unused:.4f}"
                print(f"\r{arm.name}, seed {seed}: dev {result.dev:.4f}{unused}, {result.seconds:.0f} s", flush=True)
        keys = {arm.key for arm in selected}
        current = [r for r in results.all if (r.task, r.setup) == (options.task, trainer.setup) and r.arm in keys]
    rows = summary(current)
    # Short runs are not judged: their traffic is mostly the initial codes, and their accuracy is chance.
    full = options.task == "sst2" and options.train >= 8000 and options.epochs >= 3 and not options.steps
    return finish(
        "sft_accuracy",
        options,
        scale=f"{options.task}, {trainer.setup} examples x epochs, seeds {','.join(map(str, options.seeds))}",
        claim=CLAIM,
        figures={"rows": rows},
        gates=gates(rows, judged=full and not options.quick and not options.model),
        tables=[table(rows)],
        title={"sst2": "SST-2", "cola": "CoLA", "rte": "RTE"}.get(options.task, options.task),
    )


if __name__ == "__main__":
    sys.exit(main())
