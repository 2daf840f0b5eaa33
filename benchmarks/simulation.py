"""Cost of a simulated round with the simulators of farshore, Flower (on Ray) and pfl-research on the same work.

Flower and pfl run in separate virtual environments, which the script creates with uv (--venvs; some gigabytes). All
systems have the same models, images and clients, two single-threaded workers and no evaluation; they take turns. In an
echo (W0) each client takes one SGD step on one sample, in every system. The gates are on CPU time of the process tree
per round, without the first round; wall time and memory are reported too. farshore runs with the default execution,
one client after another, and with execution=auto. A plain training loop in one process is the lower bound. On a busy
machine no gate is judged.

    python benchmarks/simulation.py --venvs ~/.cache/farshore-peers --json simulation.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from _common import BUSY_PERCENT, Gate, Table, finish, gate, parser
from peers.measure import PEERS, Cost, Peers, become_reaper, measure
from peers.work import Work, write_images

CLAIM = "pfl-research: 7 to 72 times faster than the alternatives (arXiv 2404.06430, abstract; a GPU, larger models)"
ECHOES = [
    Work("W0 echo, N=100, C=10, 10k", 100, 10, 400, "echo", params=10_000),
    Work("W0 echo, N=1,000, C=50, 10k", 1000, 50, 200, "echo", params=10_000),
    Work("W0 echo, N=1,000, C=50, 1.63M", 1000, 50, 30, "echo", params=1_626_442),
    Work("W0 echo, N=10,000, C=100, 10k", 10_000, 100, 100, "echo", params=10_000),
    Work("W0 echo, N=100, C=10, 10M", 100, 10, 30, "echo", params=10_000_000),
]
#: The first echo with a larger population.
CROWD = Work("W0 echo, N=100,000, C=10, 10k", 100_000, 10, 400, "echo", params=10_000)
SMALL = [
    Work("W1 logistic regression", 1000, 10, 100, "logistic", shape=(784,), samples=60, batch=10, lr=0.03),
    Work("W2 small CNN", 3400, 10, 100, "small_cnn", shape=(1, 28, 28), samples=100, batch=20, lr=0.1),
]
LARGE = [
    Work("W3 CIFAR CNN", 1000, 50, 20, "cifar_cnn", shape=(3, 32, 32), samples=50),
    Work("W4 CIFAR CNN, unequal sizes", 1000, 50, 20, "cifar_cnn", shape=(3, 32, 32), samples=50, spread=0.8),
]
#: Fraction of a work's rounds that expensive systems run.
SHARE = {"flower": 0.1, "flower, defaults": 0.1, "pfl": 0.5}
LARGE_SHARE = {"flower": 0.5, "flower, defaults": 0.25}


class Bench:
    """Measures the cost of systems on works.

    Parameters
    ----------
    options : Namespace
    peers : Peers
    folder : Path
        Folder for images.
    """

    def __init__(self, options: argparse.Namespace, peers: Peers, folder: Path) -> None:
        self._options, self._peers, self._folder = options, peers, folder
        self.costs: dict[tuple[str, str], list[Cost]] = {}
        self.busy = 0.0

    def run(self, works: Sequence[Work], systems: Sequence[str], repeats: int) -> None:
        """Measure all works, with the systems in turns."""
        for _ in range(repeats):
            for work in works:
                if work.shape:
                    write_images(self._folder, work.shape)
                for system in systems:
                    self.busy = max(self.busy, psutil.cpu_percent(1.0))
                    cost = measure(self._peers.commands(system, self._sized(work, system), self._folder))
                    self.costs.setdefault((work.name, system), []).append(cost)
                    print(f"{work.name}, {system}: {1000 * cost.cpu:.2f} ms CPU a round", flush=True)

    def _sized(self, work: Work, system: str) -> Work:
        share = (LARGE_SHARE if work.model == "cifar_cnn" else SHARE).get(system, 1.0)
        rounds = 5 if self._options.quick else max(5, round(work.rounds * share))
        return Work.loads(work.dumps().replace(f'"rounds": {work.rounds}', f'"rounds": {rounds}'))

    def cpu(self, work: Work, system: str) -> float | None:
        """Median CPU seconds per round."""
        found = self.costs.get((work.name, system))
        return median(c.cpu for c in found) if found else None

    def ratio(self, work: Work, system: str, over: str = "farshore") -> float | None:
        """CPU time of ``system`` divided by that of ``over``."""
        mine, other = self.cpu(work, over), self.cpu(work, system)
        return other / mine if mine and other else None

    def over_bare(self, work: Work) -> float | None:
        """CPU time of farshore divided by that of the bare training loop."""
        return self.ratio(work, "farshore", "bare")

    def start(self, work: Work) -> float | None:
        """Median CPU seconds of farshore until the end of the first round."""
        found = self.costs.get((work.name, "farshore"))
        return median(c.start for c in found) if found else None


def gates(bench: Bench, judged: bool) -> Iterator[Gate]:
    """Gates of the benchmark."""

    def at_least(name: str, value: float | None, least: float) -> Gate:
        return gate(name, value, f">= {least:g}", value is not None and value >= least if judged else None)

    def at_most(name: str, value: float | None, most: float) -> Gate:
        return gate(name, value, f"<= {most:g}", value is not None and value <= most if judged else None)

    def limit(work: Work) -> Gate:
        name = f"{work.name}: pfl / bare training loop, the most that any simulator could gain"
        return gate(name, bench.ratio(work, "pfl", "bare"), "none, for information", None)

    for work in ECHOES:
        yield at_least(f"{work.name}: Flower / farshore", bench.ratio(work, "flower"), 20)
        yield at_least(f"{work.name}: pfl / farshore", bench.ratio(work, "pfl"), 3)
        yield limit(work)
    yield at_most(f"{ECHOES[-1].name}: farshore / bare training loop", bench.over_bare(ECHOES[-1]), 1.5)
    crowd, few = bench.cpu(CROWD, "farshore"), bench.cpu(ECHOES[0], "farshore")
    flat = abs(crowd / few - 1) if crowd and few else None
    yield at_most("cost of a round, N=100,000 against N=100: change", flat, 0.05)
    for work, pfl in zip(SMALL, (2.5, 1), strict=True):
        yield at_least(f"{work.name}: Flower / farshore", bench.ratio(work, "flower"), 10)
        yield at_least(f"{work.name}: pfl / farshore", bench.ratio(work, "pfl"), pfl)
        yield limit(work)
    yield at_most(f"{SMALL[1].name}: farshore / bare training loop", bench.over_bare(SMALL[1]), 1.02)
    yield at_least("W3: Flower / farshore", bench.ratio(LARGE[0], "flower"), 2)
    yield at_least("W3: pfl / farshore", bench.ratio(LARGE[0], "pfl"), 1)
    yield at_most("W3: farshore / bare training loop", bench.over_bare(LARGE[0]), 1.02)
    yield at_most("W1: CPU seconds of start-up (three processes that import torch)", bench.start(SMALL[0]), 2.5)


def table(bench: Bench) -> Table:
    """Table with a row per work and system."""
    columns = ["work", "system", "CPU ms a round", "/ farshore", "wall ms a round", "memory, MB", "start-up, CPU s"]
    rows = []
    for (work, system), costs in bench.costs.items():
        own = bench.costs.get((work, "farshore"))
        cpu = median(c.cpu for c in costs)
        times = f"{cpu / median(c.cpu for c in own):.2f}x" if own else "–"
        wall, memory, start = (median(getattr(c, n) for c in costs) for n in ("wall", "memory", "start"))
        cells = [f"{1000 * cpu:.2f}", times, f"{1000 * wall:.2f}", f"{memory / 1e6:.0f}", f"{start:.1f}"]
        rows.append([work, system, *cells])
    return Table("Cost of a simulated round", columns, rows)


def figures(bench: Bench) -> list[dict[str, Any]]:
    """All measurements."""
    return [
        {"work": work, "system": system, "cpu": c.cpu, "wall": c.wall, "memory": c.memory, "start": c.start}
        for (work, system), costs in bench.costs.items()
        for c in costs
    ]


def main() -> int:
    """Measure and report."""
    cli = parser(__doc__)
    cli.add_argument(
        "--venvs", type=Path, metavar="DIR", help="folder of the other systems' environments; created if missing"
    )
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--only", nargs="*", metavar="W", help="prefixes of work names, e.g. W0 W3")
    options = cli.parse_args()
    become_reaper()
    with tempfile.TemporaryDirectory(prefix="farshore-images-") as folder:
        peers = Peers(options.venvs)
        peers.make()
        bench = Bench(options, peers, Path(folder))
        others = [name for name in PEERS if peers.has(name)]
        works = [ECHOES[0], CROWD, SMALL[0]] if options.quick else [*ECHOES, CROWD, *SMALL, *LARGE]
        if options.only is not None:
            works = [w for w in works if w.name.startswith(tuple(options.only))]
        repeats = 1 if options.quick else options.repeats
        bench.run([w for w in works if w is not CROWD], ["farshore", "farshore, default", *others, "bare"], repeats)
        bench.run([w for w in works if w is CROWD], ["farshore", "farshore, default"], repeats)
        if "flower" in others and not options.quick:
            bench.run([w for w in works if w is LARGE[0]], ["flower, defaults"], 1)
    idle = bench.busy <= BUSY_PERCENT
    busy = "" if idle else f"; the machine was busy ({bench.busy:.0f} % before a run): not judged"
    return finish(
        "simulation",
        options,
        scale=f"two workers, one thread each; medians of {repeats}{busy}",
        claim=CLAIM,
        figures={"costs": figures(bench), "peers": peers.versions()},
        gates=gates(bench, judged=idle and not options.quick),
        tables=[table(bench)],
    )


if __name__ == "__main__":
    sys.exit(main())
