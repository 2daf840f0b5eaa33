"""A trial: one arm of a scenario with one seed, in a run directory of its own."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from ..core.workloads import load
from ..runs.directory import RunDirectory
from .origin import origin_of
from .run_directories import check_same

_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Trial:
    """Arguments of a simulation; can be serialized to JSON.

    Attributes
    ----------
    arm : str
        Name of the scenario's arm.
    seed : int
    directory : str
        Run directory.
    workload : str
        Name of the method.
    config : dict
        Configuration of the method with all defaults filled in.
    clients : int
        Number of clients of a federated method.
    data : dict
        Paths of data sets by name.
    workers : int
        Number of processes that train the clients; 1 = the trial's own process.
    backend, address : str
        See :class:`~farshore.simulations.federated.simulation.Simulation`.
    devices : dict or None
        Resolved :class:`~farshore.simulations.clock.Devices`.
    nodes : dict or None
        Names and roles of the virtual nodes of a method that is not federated; None for a federated one.
    """

    arm: str
    seed: int
    directory: str
    workload: str
    config: dict[str, Any]
    clients: int
    data: dict[str, str]
    workers: int = 1
    backend: Literal["local", "ray"] = "local"
    address: str = ""
    devices: dict[str, Any] | None = None
    nodes: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """Display name."""
        return f"{self.arm}, seed {self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """Return the trial as a dict, to send it to a trial process."""
        return asdict(self)

    def finished(self) -> bool:
        """Whether the directory holds the result of this trial.

        Raises
        ------
        ConfigError
            The directory holds a run with other settings, or one made by other code or from other data.
        """
        path = Path(self.directory)
        if not (path / "run.json").exists():
            return False
        run = RunDirectory.open(path)
        expected: dict[str, Any] = {"workload": self.workload, "config": self.config, "seed": self.seed}
        expected |= {"clients": self.clients} if self.nodes is None else {"roles": self.nodes}
        expected["devices"] = self.devices
        origin = origin_of(load(self.workload), {name: Path(data) for name, data in self.data.items()})
        check_same(run, "trial", expected, origin)
        return run.result is not None


def folder_of(arm: str, seed: int) -> str:
    """Return the directory name for an arm and a seed; long and non-ASCII names get a hash as suffix."""
    slug = re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-.")[:_LONGEST_NAME].strip("-.")
    if not arm.isascii() or len(arm) > _LONGEST_NAME:
        slug = f"{slug or 'arm'}-{xxhash.xxh3_64_hexdigest(arm.encode())[:8]}"
    return f"{slug or 'arm'}-seed-{seed}"
