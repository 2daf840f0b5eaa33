"""Run a training method without a farshore server: under ``torchrun``, or in a trainer of Ray.

    torchrun --nproc-per-node 4 -m farshore.torchrun data_parallel --set model=resnet20 --out run
    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m farshore.torchrun dp_kfac --out run

The ranks find each other through the environment variables that the launcher sets. Launchers that make the process
group themselves call :func:`train`.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.distributed as dist
import typer

from .cli.failures import report_error
from .core import workloads
from .core.control import Control
from .core.errors import ConfigError, DataError, StorageError
from .core.json_text import to_json
from .core.message import Array, Scalar
from .core.projects import methods_of, use_project
from .core.seeds import Seed
from .engines.collective.protocol import End
from .engines.data_parallel.config import TrainingConfig
from .engines.data_parallel.loop import train as run_steps
from .engines.data_parallel.protocol import BEST_SCORE, BestState, Figures, Trained
from .engines.data_parallel.training import Training
from .engines.data_parallel.workload import TrainingWorkload
from .runs.checkpoints import CheckpointStore
from .runs.model_states import save_state

#: Longest time that ranks wait in a collective, for example while rank 0 evaluates.
EVALUATION_TIMEOUT = datetime.timedelta(hours=12)


@dataclass
class LaunchedGroup:
    """The ranks that a launcher started; a :class:`~farshore.engines.data_parallel.loop.RankGroup`.

    The ranks end together. After a restart (``torchrun --max-restarts``) they continue from the newest checkpoint
    that all of them hold.
    """

    rank: int
    size: int
    out: Path
    step: int = 0
    has_checkpoint: bool = False
    source: int = -1

    def __post_init__(self) -> None:
        self._store = CheckpointStore(self.out / "checkpoints" / f"rank-{self.rank}")
        self._current_step = 0
        self.step = self._common_step()
        self.has_checkpoint = self.step > 0

    def _common_step(self) -> int:
        """Return the newest step of which all ranks hold a checkpoint; 0 = none.

        Raises
        ------
        StorageError
            There is none although a rank has progressed beyond its first checkpoint.
        """
        own = torch.tensor([0, 0, *self._store.steps()][-2:])
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(gathered, own)
        else:
            gathered = [own]
        held = [{int(step) for step in steps if step} for steps in gathered]
        step = max(set.intersection(*held), default=0)
        if not step and any(len(steps) > 1 for steps in held):
            lacking = ", ".join(f"rank {rank}" for rank, steps in enumerate(held) if len(steps) < 2)
            raise StorageError(
                f"cannot continue the training in {self.out}: the ranks have no checkpoint of the same step"
                + (f" ({lacking} lacks them)" if lacking else ""),
                hint=f"restore them, or move {self.out / 'checkpoints'} away to start over",
            )
        return step

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Load this rank's checkpoint of :attr:`step`."""
        return self._store.load(self.step)

    def set_step(self, step: int) -> None:
        """Set the step of the following messages."""
        self._current_step = step

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Print figures as a line of JSON on standard output; save the best state."""
        if isinstance(control, Figures):
            print(to_json({"step": self._current_step, **control.values}), flush=True)
        elif isinstance(control, BestState):
            self._save("best", tensors or {}, step=self._current_step, score=control.score)

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint."""
        self._store.save(step, tensors, meta)

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        """Write the trained model and print the result, on the rank that has them."""
        if tensors:
            values = end.values if isinstance(end, Trained) else {}
            self._save("last", tensors)
            if BEST_SCORE in values:
                self._save("best", tensors, step=values["steps"], score=values[BEST_SCORE])
            print(to_json({"ended": True, **values}), flush=True)

    def _save(self, name: str, tensors: Mapping[str, torch.Tensor], **metadata: Scalar) -> None:
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        texts = {key: str(value) for key, value in metadata.items()}
        save_state(self.out / f"{name}.safetensors", arrays, {"farshore": "torchrun", **texts})


def train(
    method: str, settings: Mapping[str, Any], out: Path, data: Mapping[str, Path] | None = None, seed: int = 0
) -> None:
    """Train as one rank of the default process group, or as the only rank if there is none.

    Parameters
    ----------
    method : str
        A training method: ``data_parallel``, ``dp_kfac``, or one of an installed package or a project.
    settings : mapping
        The method's settings; the others have their defaults.
    out : Path
        Directory of checkpoints and of the trained model, ``last.safetensors`` and with ``keep_best``
        ``best.safetensors``.
    data : mapping, optional
        Paths of data sets by name.
    seed : int
        Root of all random numbers; the same on all ranks.

    Raises
    ------
    ConfigError
        ``method`` is not a training method, or a setting is invalid.
    DataError
        The data set is missing.
    """
    workload = workloads.load(method)
    if not isinstance(workload, TrainingWorkload):
        raise ConfigError(f"'{method}' is not a training method", hint="for example data_parallel or dp_kfac")
    config = cast(TrainingConfig, workload.config.model_validate(dict(settings)))
    paths = dict(data or {})

    def find(name: str) -> Path:
        if name not in paths:
            raise DataError(f"no path was given for the data set '{name}'", hint=f"--data {name}=PATH")
        return Path(paths[name])

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    if config.threads:
        torch.set_num_threads(config.threads)
    root = Seed(seed)
    training = Training(config, workload.make_task(config, root, find), root, rank, ranks)
    run_steps(training, LaunchedGroup(rank, ranks, out))


def train_command(
    method: Annotated[str, typer.Argument(help="A training method, for example data_parallel.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; --set overrides it.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Path of a data set.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of checkpoints and the model.")] = Path("run"),
    seed: Annotated[int, typer.Option(min=0, help="Root seed of all random numbers.")] = 0,
) -> None:
    """Train as one of the ranks that a launcher such as torchrun started."""
    from .cli.settings import build, data_paths

    if methods_of(Path()):  # a project's own methods, in the working directory
        use_project(Path())
    settings = build(workloads.load(method).config, set_ or (), config)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Tensors of the CPU go through gloo in any case: figures, states, and counts of steps.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=EVALUATION_TIMEOUT)
    try:
        train(method, settings.model_dump(), out, data_paths(data or ()), seed)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train_command)
    try:
        app(standalone_mode=False)
    except BaseException as error:
        sys.exit(report_error(error, debug=False))


if __name__ == "__main__":
    main()
