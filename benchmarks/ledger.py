"""Cost of the ledger: nanoseconds per recorded and written row, and seconds to aggregate a million rows."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger, totals

#: A frame of 1 MiB at 10 Gbit/s takes 840 µs; recording it should take far less than a hundredth of that.
ROW_GOAL_NS = 5_000.0
SUM_GOAL_SECONDS = 1.0
BY = ("node", "direction", "kind", "encoding")


def transfers(count: int) -> list[Transfer]:
    """Build rows like those of a split run with 8 nodes: two large frames per step, and acknowledgements."""
    kinds = (("up", "activation", "ragged|int4"), ("down", "gradient", "int8"), ("up", "ack", "raw"))
    rows = []
    for i in range(count):
        direction, kind, encoding = kinds[i % 3]
        dense = 0 if kind == "ack" else 100_000 + i % 997
        node = f"edge-{i % 8}"
        sizes = (dense, dense // 96, dense // 96 + 80)
        rows.append(Transfer(node, direction, kind, encoding, 0, i // 24, i % 4, *sizes, 0, 1.7e9 + i / 997))  # type: ignore[arg-type]
    return rows


def measure_recording(rows: list[Transfer], threads: int) -> tuple[float, float, float]:
    """Measure ns per row of ``record`` alone and until all blocks are written, and bytes per row on disk."""
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder)) as ledger:
            parts = [rows[i::threads] for i in range(threads)]
            workers = [threading.Thread(target=_record, args=(ledger, part), name="recorder") for part in parts]
            start = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            recorded = time.perf_counter() - start
            ledger.flush()
            written = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return recorded / len(rows) * 1e9, written / len(rows) * 1e9, size / len(rows)


def measure_sums(rows: list[Transfer], count: int) -> tuple[float, float]:
    """Measure seconds to read ``count`` rows, and to read and aggregate them by node, direction, kind and encoding."""
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder)) as ledger:
            for i in range(count):
                ledger.record(rows[i % len(rows)])
        totals(read_ledger(Path(folder)).slice(0, 1), BY)  # warm up the imports
        start = time.perf_counter()
        table = read_ledger(Path(folder))
        read = time.perf_counter() - start
        assert table.num_rows == count
        totals(table, BY)
        return read, time.perf_counter() - start


def _record(ledger: Ledger, rows: list[Transfer]) -> None:
    for row in rows:
        ledger.record(row)


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repetitions")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to this file")
    options = parser.parse_args()
    rows = transfers(100_000 if options.quick else 400_000)
    repeats = 2 if options.quick else 5
    count = 1_000_000
    single = min(measure_recording(rows, 1) for _ in range(repeats))
    threaded = min(measure_recording(rows, 4) for _ in range(repeats))
    read, summed = measure_sums(rows, count)
    figures: dict[str, Any] = {
        "record_ns": single[0],
        "record_and_write_ns": single[1],
        "record_and_write_ns_4_threads": threaded[1],
        "disk_bytes_per_row": single[2],
        "rows_summed": count,
        "read_seconds": read,
        "read_and_sum_seconds": summed,
    }
    slowest = max(single[1], threaded[1])
    gates = [
        {"name": "ns per row, blocks written", "value": slowest, "goal": ROW_GOAL_NS, "holds": slowest <= ROW_GOAL_NS},
        {"name": "s to sum 1e6 rows", "value": summed, "goal": SUM_GOAL_SECONDS, "holds": summed <= SUM_GOAL_SECONDS},
    ]
    for name, value in figures.items():
        print(f"{name:32} {value:,.3f}")
    for gate in gates:
        print(f"{'holds' if gate['holds'] else 'FAILS':6} {gate['name']}: {gate['value']:,.2f} (goal {gate['goal']:,})")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "gates": gates}, indent=2) + "\n")
    raise SystemExit(not all(gate["holds"] for gate in gates))


if __name__ == "__main__":
    main()
