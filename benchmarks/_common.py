"""What all benchmark scripts share: their arguments, gates, the machine's description, and their JSON."""

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

#: Share of the cores that others may use while something is measured; beyond it nothing is judged.
BUSY_PERCENT = 10.0


@dataclass(frozen=True)
class Gate:
    """A goal and what was measured; ``holds`` is None where this run cannot judge it (``--quick``, one seed …)."""

    name: str
    value: float | None
    goal: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "MISSED", None: "not judged"}[self.holds]
        value = "–" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {value} (goal {self.goal}): {verdict}"


def gate(name: str, value: float | None, goal: str, holds: bool | None) -> Gate:
    """A goal beside what was measured."""
    return Gate(name, value, goal, None if holds is None or value is None else bool(holds))


@dataclass(frozen=True)
class Table:
    """Figures for people; ``results.py`` puts them on the page of results as they are."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every script has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="under a minute, at a scale that judges no figure")
    made.add_argument("--json", type=Path, metavar="PATH", help="write figures and gates there")
    return made


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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
    """Print tables and gates, write the JSON if it is wanted, and return the exit code: 1 if a goal was missed.

    Parameters
    ----------
    scale : str
        How much was run, in words.
    claim : str
        What the paper, or the goal, says; printed beside.
    figures : Mapping
        Everything measured, for machines.
    title : str
        What tells this run from others of the same script, on the page of results.
    """
    tables, gates = list(tables), list(gates)
    for table in tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    print(f"\nscale: {scale}\nclaim: {claim}")
    for found in gates:
        print(found)
    if options.json:
        made = {
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
        options.json.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(g.holds is False for g in gates))


def command() -> str:
    """The command that ran, without what belongs to this machine: folders are named by their last part only."""
    words = []
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        words.append(_short(flag) if not equals else f"{flag}={_short(value)}")
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _short(word: str) -> str:
    return f"…/{Path(word).name}" if word.startswith("/") else word
