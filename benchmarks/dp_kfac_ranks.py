"""Child process of ``dp_kfac.py``: measures a step of each scheme on four gloo ranks in a network namespace.

python benchmarks/dp_kfac_ranks.py SETTINGS        # the driver; SETTINGS is JSON
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gloo_ranks import RANKS, over_ranks
from _own_network import enter, loopback_bytes

SCHEMES: dict[str, dict[str, Any] | None] = {
    "SGD": None,
    "COMM-OPT": {"strategy": "comm_opt"},
    "HYBRID 0.5": {"strategy": "hybrid"},
    "MEM-OPT": {"strategy": "mem_opt"},
    "COMM-OPT symmetric": {"strategy": "comm_opt", "symmetry_aware": True},
    "MEM-OPT symmetric": {"strategy": "mem_opt", "symmetry_aware": True},
    "DP all-reduce": {},
    "DP owner, reduce": {"grad_exchange": "owner", "exchange_way": "reduce"},
    "DP owner": {"grad_exchange": "owner"},
}

#: kfac-pytorch itself, if installed.
PACKAGE: dict[str, dict[str, Any]] = {
    "kfac-pytorch COMM-OPT": {"grad_worker_fraction": "COMM_OPT"},
    "kfac-pytorch MEM-OPT": {"grad_worker_fraction": "MEM_OPT"},
    "kfac-pytorch MEM-OPT symmetric": {"grad_worker_fraction": "MEM_OPT", "symmetry_aware": True},
}


def schemes() -> list[str]:
    """Names of the schemes that can be measured."""
    return [*SCHEMES, *(PACKAGE if importlib.util.find_spec("kfac") else ())]


def model_and_batch(name: str) -> tuple[Any, Any, Any]:
    """Build a model and one random batch."""
    import torch

    from farshore.models.cifar_resnet import CifarResNet
    from farshore.models.mlp import perceptron

    torch.manual_seed(0)
    if name == "mlp":
        return perceptron((784, 512, 512, 512, 10)), torch.randn(32, 784), torch.randint(10, (32,))
    return CifarResNet(20), torch.randn(8, 3, 32, 32), torch.randint(10, (8,))


class Scheme:
    """A model trained with one scheme."""

    def __init__(self, model: str, name: str, interval: int) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from farshore.algorithms.dp_kfac import DPKFAC

        network, self.x, self.y = model_and_batch(model)
        self.base = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        self.kfac: Any = None
        # Before DDP, whose communication hook then reduces gradients to their owners.
        if (settings := SCHEMES.get(name)) is not None:
            self.kfac = DPKFAC(network, lr=self.base, factor_steps=interval, inv_steps=interval, **settings)
        self.model = DistributedDataParallel(network, broadcast_buffers=False)
        if self.kfac is not None:
            self.kfac.attach_ddp(self.model)
        elif name in PACKAGE:
            self.kfac = _package_preconditioner(self.model, interval, **PACKAGE[name])

    def step(self) -> None:
        """Take one training step."""
        from torch.nn import functional

        self.base.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()
        if self.kfac is not None:
            self.kfac.step()
        self.base.step()


def _package_preconditioner(model: Any, interval: int, grad_worker_fraction: str, **settings: Any) -> Any:
    warnings.filterwarnings("ignore", message="NVIDIA Apex")
    from kfac.enums import DistributedStrategy
    from kfac.preconditioner import KFACPreconditioner

    strategy = DistributedStrategy[grad_worker_fraction]
    steps = {"factor_update_steps": interval, "inv_update_steps": interval}
    return KFACPreconditioner(model, lr=0.01, grad_worker_fraction=strategy, **steps, **settings)


def measure(scheme: Scheme, steps: int) -> tuple[float, float, float]:
    """Measure loopback bytes, this process's CPU seconds and wall seconds of a step; collective over all ranks."""
    import torch.distributed as dist

    dist.barrier()
    before, cpu, clock = loopback_bytes(), time.process_time(), time.perf_counter()
    for _ in range(steps):
        scheme.step()
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    dist.barrier()
    return (loopback_bytes() - before) / steps, cpu / steps, clock / steps


def all_schemes(rank: int, report: Callable[[Any], None], settings: dict[str, Any]) -> None:
    """Measure every scheme in turns on one rank."""
    found: dict[str, Any] = {}
    for model in settings["models"]:
        for interval in settings["intervals"]:
            trained = {name: Scheme(model, name, interval) for name in schemes()}
            for scheme in trained.values():
                for _ in range(2):
                    scheme.step()
            samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in trained}
            for _ in range(settings["rounds"]):
                for name, scheme in trained.items():
                    samples[name].append(measure(scheme, max(settings["steps"], interval)))
            for name, scheme in trained.items():
                medians = [statistics.median(values) for values in zip(*samples[name], strict=True)]
                state = scheme.kfac.memory_usage()["total"] if scheme.kfac else 0
                counted = scheme.kfac.comm_bytes() if SCHEMES.get(name) is not None else {}
                found[f"{model}/{interval}/{name}"] = {
                    "bytes": medians[0],
                    "cpu": medians[1],
                    "seconds": medians[2],
                    "state": state,
                    "counted": {phase: traffic["sent"] for phase, traffic in counted.items()},
                }
    report((rank, found))


def main() -> int:
    """Enter a network namespace, start the ranks, print their measurements."""
    settings = json.loads(sys.argv[1])
    if not enter():
        print("cannot create a network namespace: run as root", file=sys.stderr)
        return 2
    if rate := settings.get("megabits"):
        limit(rate)
    found = dict(over_ranks(all_schemes, settings))
    print(json.dumps([found[rank] for rank in range(RANKS)]))
    return 0


def limit(megabits: float) -> None:
    """Limit the rate of the loopback, shared by all ranks."""
    import shutil
    import subprocess

    tc = shutil.which("tc") or "/sbin/tc"
    if not Path(tc).exists():
        raise SystemExit("'tc' is missing: install iproute2")
    command = [tc, "qdisc", "add", "dev", "lo", "root", "tbf", "rate", f"{megabits}mbit", "burst", "256kb"]
    subprocess.run([*command, "latency", "2s"], check=True)


if __name__ == "__main__":
    sys.exit(main())
