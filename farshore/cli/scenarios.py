"""Turn the arguments of ``farshore simulate`` into a scenario and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import ConfigError
from .output import note

if TYPE_CHECKING:
    from ..simulations.clock import Devices
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial

_YAML = (".yaml", ".yml")
#: File name of a project's scenario, as written by ``farshore init``.
_SCENARIO_FILE = "scenario.yaml"
#: Duration of a step at compute factor 1 where devices are given without one.
DEFAULT_STEP_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Engine:
    """Where clients are simulated: backend and number of worker processes.

    Attributes
    ----------
    cores : int
        Number of worker processes.
    backend, address : str
        See :class:`~farshore.simulations.federated.simulation.Simulation`.
    """

    cores: int
    backend: Literal["local", "ray"] = "local"
    address: str = ""

    @classmethod
    def from_options(cls, workers: int, backend: str, address: str, threads: int = 1) -> Engine:
        """Build the engine from command-line options.

        Parameters
        ----------
        workers : int
            Worker processes; 0 = the maximum for the cores. Reduced, with a note, where ``workers * threads`` exceeds
            the cores of this machine; never for a Ray cluster given by ``address``.
        backend : str
            ``local`` or ``ray``.
        address : str
            Address of a Ray cluster; empty to use this machine.
        threads : int
            Threads per worker; 0 = one per core.

        Raises
        ------
        ConfigError
            The backend is unknown, or ``address`` is given without ``ray``.
        """
        from ..simulations.experiment import cores

        if backend not in ("local", "ray"):
            raise ConfigError(f"unknown backend '{backend}'", hint="use --backend local or --backend ray")
        if address and backend != "ray":
            raise ConfigError("--address requires --backend ray", hint="add --backend ray")
        available = cores()
        limit = max(1, available // (threads or available))
        if workers > limit and not address:
            each = "one thread" if threads == 1 else f"{threads or available} threads"
            note(f"{workers} workers of {each} exceed the {available} available cores; using {limit}")
            workers = limit
        return cls(workers or limit, "ray" if backend == "ray" else "local", address)

    def plan(self, trials: int) -> tuple[int, int]:
        """Return concurrent trials and workers per trial; on Ray, trials run one at a time on the whole cluster."""
        from ..simulations.experiment import divide_cores

        return (1, self.cores) if self.backend == "ray" else divide_cores(trials, self.cores)


def flower_app_folder(name: str) -> Path | None:
    """Return the folder of a Flower app, or None if ``name`` is a built-in scenario, a method or a project with one."""
    from ..core.workloads import names
    from ..simulations.scenario import bundled_scenarios

    folder = Path(name)
    is_scenario = name in bundled_scenarios() or name in names() or (folder / _SCENARIO_FILE).is_file()
    return folder if folder.is_dir() and not is_scenario else None


def find_scenario(name: str) -> tuple[str, Scenario]:
    """Load a scenario: a built-in one, a YAML file, a project folder, or a method as a single arm with its defaults.

    A project's methods are registered from the ``pyproject.toml`` next to its scenario.
    """
    from ..core.projects import methods_of, use_project
    from ..core.workloads import names
    from ..simulations import scenario

    known = scenario.bundled_scenarios()
    if name not in known and (Path(name) / _SCENARIO_FILE).is_file():
        name = str(Path(name) / _SCENARIO_FILE)
    project = Path(name).parent if name.endswith(_YAML) else Path()
    if methods_of(project):
        use_project(project)
    if name in names() and name not in known:
        found = scenario.Scenario(about=f"{name} with its defaults", method=name, arms={name: {}})
    else:
        name, found = scenario.load_scenario(name)
    if not found.score and is_federated(found.method):
        found = found.model_copy(update={"score": "acc"})
    return name, found


def is_federated(method: str) -> bool:
    """Whether a method is federated; such methods have clients, and a simulation that scales with the cohort."""
    from ..core.workloads import load
    from ..engines.federated.workload import FederatedWorkload

    return isinstance(load(method), FederatedWorkload)


def override(
    scenario: Scenario,
    *,
    arms: Sequence[str] | None = None,
    nodes: str | None = None,
    seeds: str | None = None,
    devices: str | None = None,
    seconds_per_step: float | None = None,
) -> Scenario:
    """Apply the command line's arms, node count, seeds and devices to a scenario.

    Parameters
    ----------
    nodes : str, optional
        Number of clients or nodes, or of nodes by role: ``lidar=1,camera=6``.
    devices : str, optional
        Population of devices: a bundled one or a YAML file.
    seconds_per_step : float, optional
        Duration of a step on them.
    """
    update: dict[str, Any] = {}
    if arms:
        unknown = [arm for arm in arms if arm not in scenario.arms]
        if unknown:
            raise ConfigError(f"unknown arm '{unknown[0]}'", hint=f"arms are {', '.join(scenario.arms)}")
        update["arms"] = {arm: scenario.arms[arm] for arm in arms}
        update["baseline"] = scenario.baseline if scenario.baseline in arms else ""
    if nodes is not None:
        update |= _node_counts(nodes, federated=is_federated(scenario.method))
    if seeds is not None:
        try:
            update["seeds"] = tuple(dict.fromkeys(int(s) for s in seeds.split(",")))
        except ValueError as error:
            raise ConfigError(f"--seeds {seeds}: not a comma-separated list of integers") from error
    if devices is not None or seconds_per_step is not None:
        update["devices"] = _devices(scenario, devices, seconds_per_step)
    return scenario.model_copy(update=update)


def _node_counts(text: str, *, federated: bool) -> dict[str, Any]:
    from .cohort import node_counts

    counts = node_counts(text)
    if federated and "" not in counts:
        raise ConfigError(f"--nodes {text}: clients have no roles", hint="write --clients N")
    if "" in counts:
        return {"clients" if federated else "nodes": counts[""]}
    return {"nodes": counts}


def _devices(scenario: Scenario, population: str | None, seconds_per_step: float | None) -> Devices:
    from ..simulations.clock import Devices

    if scenario.devices is None and population is None:
        raise ConfigError("--seconds-per-step needs devices", hint="add --devices NAME, e.g. --devices wifi-laptops")
    base = scenario.devices or Devices(population=population or "", seconds_per_step=DEFAULT_STEP_SECONDS)
    given = {"population": population, "seconds_per_step": seconds_per_step}
    return base.model_copy(update={name: value for name, value in given.items() if value is not None})


def configs(scenario: Scenario, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Resolve the settings of every arm."""
    from ..core.workloads import load
    from ..simulations.virtual_nodes import check_config, check_simulated
    from .settings import resolve

    workload = load(scenario.method)
    check_simulated(workload)
    found = {a: resolve(workload.config, scenario.values(a), pairs) for a in scenario.arms}
    for config in found.values():
        check_config(config)
    return {a: config.model_dump(mode="json") for a, config in found.items()}


def threads_of(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the largest thread count of all arms; 0 = all cores."""
    threads = [int(config.get("threads", 1)) for config in configs.values()]
    return 0 if 0 in threads else max(threads)


def trials(
    scenario: Scenario,
    configs: Mapping[str, dict[str, Any]],
    folder: Path,
    data: Mapping[str, Path],
    engine: Engine,
) -> list[Trial]:
    """Create a trial per arm and seed, ordered by seed, so that early results compare all arms."""
    from ..simulations.trial import Trial, folder_of
    from ..simulations.virtual_nodes import check_devices

    federated = is_federated(scenario.method)
    check_devices(scenario.devices, federated=federated)
    nodes = {} if federated else _nodes(scenario, configs)

    if len({folder_of(arm, 0) for arm in configs}) < len(configs):
        raise ConfigError("two arms have names that differ only in case or punctuation", hint="rename one of them")
    _, workers = engine.plan(len(configs) * len(scenario.seeds))
    given: dict[str, Any] = {"clients": scenario.clients, "data": {n: str(p) for n, p in data.items()}}
    given["devices"] = scenario.devices.resolved().model_dump(mode="json") if scenario.devices else None
    given |= {"workers": workers, "backend": engine.backend, "address": engine.address}
    return [
        Trial(arm, seed, str(folder / folder_of(arm, seed)), scenario.method, config, **given, nodes=nodes.get(arm))
        for seed in scenario.seeds
        for arm, config in configs.items()
    ]


def _nodes(scenario: Scenario, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the virtual nodes of each arm, with their roles."""
    from ..core.workloads import load
    from ..simulations.virtual_nodes import ONLY_ROLE, virtual_nodes

    workload = load(scenario.method)
    counts = scenario.nodes
    if counts is None:
        counts = {ONLY_ROLE: scenario.clients} if "clients" in scenario.model_fields_set else {}
    elif isinstance(counts, int):
        counts = {ONLY_ROLE: counts}
    return {
        arm: virtual_nodes(workload, workload.config.model_validate(config), counts) for arm, config in configs.items()
    }
