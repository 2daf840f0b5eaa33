"""Shared parts of the benchmark scripts: arguments, gates, machine description and JSON output."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

#: Largest CPU use by other processes, in percent, at which gates are judged.
BUSY_PERCENT = 10.0


@dataclass(frozen=True)
class Gate:
    """A goal and its measured value; ``holds`` is None if the run cannot judge it (``--quick``, a single seed …)."""

    name: str
    value: float | None
    goal: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "MISSED", None: "not judged"}[self.holds]
        value = "–" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {value} (goal {self.goal}): {verdict}"


def gate(name: str, value: float | None, goal: str, holds: bool | None) -> Gate:
    """Build a :class:`Gate`; without a value it is not judged."""
    return Gate(name, value, goal, None if holds is None or value is None else bool(holds))


@dataclass(frozen=True)
class Table:
    """A table of results, printed and copied by ``results.py`` to the results page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Format as a Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the arguments common to all scripts."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--quick", action="store_true", help="run under a minute, at a scale at which no gate is judged")
    cli.add_argument("--json", type=Path, metavar="PATH", help="write results and gates to this file")
    return cli


def machine() -> dict[str, Any]:
    """Describe the machine and the package versions."""
    versions = {}
    for name in ("torch", "transformers", "numpy", "grpcio", "protobuf"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def finish(
    name: str,
    options: argparse.Namespace,
    *,
    scale: str,
    claim: str,
    figures: Mapping[str, Any],
    gates: Iterable[Gate],
    tables: Iterable[Table] = (),
    title: str = "",
) -> int:
    """Print tables and gates, write the JSON if requested, and return the exit code: 1 if a goal was missed.

    Parameters
    ----------
    scale : str
        Description of the scale of the run.
    claim : str
        Claim of the paper, or the goal, to compare with.
    figures : Mapping
        All measurements, for the JSON file.
    title : str
        Distinguishes this run from others of the same script on the results page.
    """
    tables, gates = list(tables), list(gates)
    for table in tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    print(f"\nscale: {scale}\nclaim: {claim}")
    for found in gates:
        print(found)
    if options.json:
        document = {
            "benchmark": name,
            "title": title,
            "command": command(),
            "quick": options.quick,
            "scale": scale,
            "claim": claim,
            "machine": machine(),
            "gates": [asdict(g) for g in gates],
            "tables": [asdict(t) for t in tables],
            "figures": dict(figures),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(g.holds is False for g in gates))


def command() -> str:
    """Format the command line; absolute paths are shortened to their last part."""
    arguments = []
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        arguments.append(_short(flag) if not equals else f"{flag}={_short(value)}")
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def _short(word: str) -> str:
    return f"…/{Path(word).name}" if word.startswith("/") else word
