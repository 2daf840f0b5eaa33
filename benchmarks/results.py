"""Makes docs/results.md from what the benchmark scripts measured: the JSON files in benchmarks/measured/.

python benchmarks/results.py            # writes the page
python benchmarks/results.py --check    # says whether it is current; exit code 1 if not
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _common import Gate, Table

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured"
PAGE = HERE.parent / "docs" / "results.md"

HEAD = """# Results

<!-- Made by `python benchmarks/results.py` from benchmarks/measured/*.json; changes by hand are lost. -->

What the benchmark scripts measured, with the command that ran, the machine and the scale. A goal that a run could not
judge (too small a scale, too few seeds, too few cores) says so. *Load* is the machine's average number of running
processes when the script ended: above the number of cores, other work slowed it down.
"""

TITLES = {
    "sft_accuracy": "Accuracy and traffic of split fine-tuning",
    "split_step": "Time of a split step",
    "wire": "Throughput of the wire",
    "ledger": "Cost of the ledger",
    "vhl_accuracy": "Federated learning with virtual data",
    "vhl_cifar10": "Federated learning with virtual data on CIFAR-10",
    "update_encodings": "What update encodings save and cost",
    "simulation": "Cost of a simulated round",
    "report_scale": "Accounting at scale",
    "dp_kfac": "Bytes, memory and computing of a K-FAC step",
    "dp_kfac_convergence": "How fast DP-KFAC learns",
    "flat_rounds": "Cost of a round over rounds and clients",
}


def page(folder: Path) -> str:
    """The page, from all JSON files of a folder in the order of their names."""
    files = sorted(folder.glob("*.json"))
    sections = [section(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    return "\n".join([HEAD, *(sections or ["Nothing has been measured yet.\n"])])


def section(measured: dict[str, Any]) -> str:
    """One file's part of the page."""
    lines = [f"## {_title(measured)}", "", "```", measured["command"], "```", ""]
    machine = measured.get("machine", {})
    lines += [f"- **Machine**: {_machine(machine)}"] if machine else []
    lines += [f"- **{name.capitalize()}**: {measured[name]}" for name in ("scale", "claim") if measured.get(name)]
    if measured.get("quick"):
        lines.append("- A quick run: it shows that the script works, its figures mean nothing.")
    for table in measured.get("tables", []):
        lines += ["", f"**{table['title']}**", "", Table(**table).markdown()]
    gates = [Gate(**gate) for gate in measured.get("gates", [])]
    if gates:
        rows = [[g.name, _number(g.value), g.goal, _verdict(g)] for g in gates]
        lines += ["", Table("", ["goal", "measured", "aim", ""], rows).markdown()]
    if not measured.get("tables"):
        lines += _plain(measured.get("figures", {}))
    return "\n".join([*lines, ""])


def _title(measured: dict[str, Any]) -> str:
    name = str(measured["benchmark"])
    title = TITLES.get(name, name)
    return f"{title}: {measured['title']}" if measured.get("title") else title


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    parts = [f"{machine.get('processor', 'unknown processor')}", f"{machine.get('cores', '?')} cores"]
    parts += [f"load {machine['load']}"] if "load" in machine else []
    parts += [str(machine[name]) for name in ("system",) if name in machine]
    parts += [f"Python {machine['python']}"] if "python" in machine else []
    return ", ".join([*parts, versions] if versions else parts)


def _plain(figures: dict[str, Any]) -> list[str]:
    """Figures of a script that makes no tables of its own: its numbers, by name."""
    rows = [[name.replace("_", " "), _number(value)] for name, value in figures.items() if _is_number(value)]
    return ["", Table("", ["figure", "value"], rows).markdown()] if rows else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _verdict(gate: Gate) -> str:
    return {True: "holds", False: "**missed**", None: "not judged"}[gate.holds]


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not current")
    options = parser.parse_args()
    made = page(MEASURED)
    if options.check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == made
        print("current" if current else f"{PAGE.name} is not what the measurements say: run benchmarks/results.py")
        return int(not current)
    PAGE.write_text(made, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
