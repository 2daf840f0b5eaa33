"""From what stands on the command line to the trials of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import ConfigError
from .output import note

if TYPE_CHECKING:
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial

_YAML = (".yaml", ".yml")
#: What ``farshore init`` calls a project's scenario.
_OWN = "scenario.yaml"


@dataclass(frozen=True, slots=True)
class Engine:
    """What plays the clients.

    Attributes
    ----------
    cores : int
        Processes, of so many threads each that they have a core.
    backend, address : str
        See :class:`~farshore.simulations.federated.simulation.Simulation`.
    """

    cores: int
    backend: Literal["local", "ray"] = "local"
    address: str = ""

    @classmethod
    def of(cls, workers: int, backend: str, address: str, threads: int = 1) -> Engine:
        """As the options say; 0 workers = as many as the cores have room for.

        Processes of ``threads`` threads (0 = one a core) that were more than the cores would only take them from each
        other, so there are fewer then, which is said. A Ray cluster knows its own cores.
        """
        from ..simulations.experiment import cores

        if backend not in ("local", "ray"):
            raise ConfigError(f"there is no backend '{backend}'", hint="--backend local or --backend ray")
        if address and backend != "ray":
            raise ConfigError("--address is that of a Ray cluster", hint="give --backend ray too")
        here = cores()
        room = max(1, here // (threads or here))
        if workers > room and not address:
            each = "one thread" if threads == 1 else f"{threads or here} threads"
            note(f"{workers} workers of {each} are more than the {here} cores here: {room} will do the work")
            workers = room
        return cls(workers or room, "ray" if backend == "ray" else "local", address)

    def plan(self, trials: int) -> tuple[int, int]:
        """Trials at once, and worker processes of each; on Ray one after another, each on all of it."""
        from ..simulations.experiment import divide_cores

        return (1, self.cores) if self.backend == "ray" else divide_cores(trials, self.cores)


def flower_app(name: str) -> Path | None:
    """The folder of a Flower app, if that is what is meant: one that is neither a ready scenario nor holds its own."""
    from ..core.workloads import names
    from ..simulations.scenario import bundled_scenarios

    folder = Path(name)
    own = name in bundled_scenarios() or name in names() or (folder / _OWN).is_file()
    return folder if folder.is_dir() and not own else None


def find(name: str) -> tuple[str, Scenario]:
    """A ready scenario, a file's, a project folder's, or a method as one arm with its defaults.

    A project's methods are those that its ``pyproject.toml`` names, beside the scenario.
    """
    from ..core.projects import methods_of, use_project
    from ..core.workloads import names
    from ..simulations import scenario

    known = scenario.bundled_scenarios()
    if name not in known and (Path(name) / _OWN).is_file():
        name = str(Path(name) / _OWN)
    project = Path(name).parent if name.endswith(_YAML) else Path()
    if methods_of(project):
        use_project(project)
    if name in names() and name not in known:
        return name, scenario.Scenario(about=f"{name} with its defaults", method=name, arms={name: {}})
    return scenario.load_scenario(name)


def changed(
    scenario: Scenario, *, arms: Sequence[str] | None = None, clients: int | None = None, seeds: str | None = None
) -> Scenario:
    """The scenario as the command line wants it."""
    update: dict[str, Any] = {}
    if arms:
        unknown = [arm for arm in arms if arm not in scenario.arms]
        if unknown:
            raise ConfigError(f"there is no arm '{unknown[0]}'", hint=f"arms are {', '.join(scenario.arms)}")
        update["arms"] = {arm: scenario.arms[arm] for arm in arms}
        update["baseline"] = scenario.baseline if scenario.baseline in arms else ""
    if clients is not None:
        update["clients"] = clients
    if seeds is not None:
        try:
            update["seeds"] = tuple(dict.fromkeys(int(s) for s in seeds.split(",")))
        except ValueError as error:
            raise ConfigError(f"--seeds {seeds}: not numbers with commas between them") from error
    return scenario.model_copy(update=update)


def configs(scenario: Scenario, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The resolved settings of every arm."""
    from ..core.workloads import load
    from .settings import resolve

    model = load(scenario.method).config
    return {a: resolve(model, scenario.values(a), pairs).model_dump(mode="json") for a in scenario.arms}


def threads_of(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Threads of the arm that wants most; 0 = all cores."""
    wanted = [int(config.get("threads", 1)) for config in configs.values()]
    return 0 if 0 in wanted else max(wanted)


def trials(
    scenario: Scenario,
    configs: Mapping[str, dict[str, Any]],
    folder: Path,
    data: Mapping[str, Path],
    engine: Engine,
) -> list[Trial]:
    """Every arm with every seed, seeds outermost, so that early results compare all arms."""
    from ..simulations.trial import Trial, folder_of

    if len({folder_of(arm, 0) for arm in configs}) < len(configs):
        raise ConfigError("two arms have names that differ in punctuation only", hint="rename one of them")
    _, workers = engine.plan(len(configs) * len(scenario.seeds))
    given: dict[str, Any] = {"clients": scenario.clients, "data": {n: str(p) for n, p in data.items()}}
    given["devices"] = scenario.devices.resolved().model_dump(mode="json") if scenario.devices else None
    given |= {"workers": workers, "backend": engine.backend, "address": engine.address}
    return [
        Trial(arm, seed, str(folder / folder_of(arm, seed)), scenario.method, config, **given)
        for seed in scenario.seeds
        for arm, config in configs.items()
    ]
