"""A trial: one arm of a scenario with one seed, in a run directory of its own."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.errors import ConfigError
from ..runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Trial:
    """What to simulate and where; JSON-able.

    Attributes
    ----------
    arm : str
    seed : int
    directory : str
    workload : str
    config : dict
        Resolved.
    clients : int
    data : dict
        Paths of data sets by name.
    workers : int
        Processes that play the clients; 1 = the trial's own.
    backend, address : str
        See :class:`~farshore.simulations.federated.simulation.Simulation`.
    devices : dict or None
        Resolved; see :class:`~farshore.simulations.clock.Devices`.
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

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm}, seed {self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """For the process that runs it."""
        return asdict(self)

    def finished(self) -> bool:
        """Whether its directory holds the result of this very trial.

        Raises
        ------
        ConfigError
            The directory holds another one.
        """
        path = Path(self.directory)
        if not (path / "run.json").exists():
            return False
        run = RunDirectory.open(path)
        info = run.info
        mine = {"workload": self.workload, "config": self.config, "seed": self.seed, "clients": self.clients}
        mine["devices"] = self.devices
        differing = [name for name, value in mine.items() if info.get(name) != value]
        if differing:
            raise ConfigError(
                f"{path} holds a trial with another {' and '.join(differing)}",
                hint="give another folder: --out DIR",
            )
        return run.result is not None


def folder_of(arm: str, seed: int) -> str:
    """A folder's name for an arm and a seed."""
    words = re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-.")
    return f"{words or 'arm'}-seed-{seed}"
