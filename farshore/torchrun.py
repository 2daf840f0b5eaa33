"""The data-parallel methods without a farshore server: the same program under ``torchrun``, or in Ray's trainers.

    torchrun --nproc-per-node 4 -m farshore.torchrun data_parallel --set model=resnet20 --out run
    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m farshore.torchrun dp_kfac --out run

Ranks find each other through the environment variables of the launcher. ``train`` is for launchers that create the
process group themselves.
"""

from __future__ import annotations

import json
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
from .core.errors import ConfigError, DataError
from .core.message import Array, Scalar
from .core.seeds import Seed
from .data.images import load_images
from .engines.data_parallel.config import DataParallel
from .engines.data_parallel.loop import train as run_steps
from .engines.data_parallel.training import Training
from .engines.data_parallel.workload import DataParallelWorkload
from .runs.checkpoints import CheckpointStore
from .runs.model_states import save_state


@dataclass
class LaunchedWorld:
    """A group of ranks started by a launcher, which end together.

    After a restart by the launcher (``torchrun --max-restarts``), training resumes from the newest checkpoint that all
    ranks hold.
    """

    rank: int
    size: int
    out: Path
    step: int = 0
    held: bool = False
    source: int = -1

    def __post_init__(self) -> None:
        self._store = CheckpointStore(self.out / "checkpoints" / f"rank-{self.rank}")
        self._now = 0
        self.step = self._common_step()
        self.held = self.step > 0

    def _common_step(self) -> int:
        mine = torch.tensor([max(self._store.steps(), default=0)])
        if self.size > 1:
            dist.all_reduce(mine, dist.ReduceOp.MIN)
        step = int(mine)
        return step if step in self._store.steps() else 0

    def load(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Load this rank's checkpoint."""
        return self._store.load(self.step)

    def at(self, step: int) -> None:
        """Set the step of subsequent messages."""
        self._now = step

    def tell(self, what: str, **fields: Scalar) -> None:
        """Print a line of JSON on standard output."""
        print(json.dumps({"step": self._now, **fields}), flush=True)

    def boundary(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint."""
        self._store.save(step, tensors, meta)

    def end(self, tensors: Mapping[str, torch.Tensor], **fields: Scalar) -> None:
        """Save the trained model; rank 0 only."""
        if tensors:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            save_state(self.out / "last.safetensors", arrays, {"farshore": "torchrun"})
            print(json.dumps({"ended": True, **fields}), flush=True)


def train(
    method: str, settings: Mapping[str, Any], out: Path, data: Mapping[str, Path] | None = None, seed: int = 0
) -> None:
    """Train as one rank of the default process group, or alone if there is none.

    Parameters
    ----------
    method : str
        ``data_parallel`` or ``dp_kfac``.
    settings : mapping
        Settings of the method.
    out : Path
        Folder for checkpoints and the trained model.
    data : mapping, optional
        Paths of data sets by name.

    Raises
    ------
    ConfigError, DataError
        The method is not data-parallel, a setting is invalid, or data are missing.
    """
    workload = workloads.load(method)
    if not isinstance(workload, DataParallelWorkload):
        raise ConfigError(f"'{method}' is not a data-parallel method", hint="use data_parallel or dp_kfac")
    config = cast(DataParallel, workload.config.model_validate(dict(settings)))
    paths = dict(data or {})

    def find(name: str) -> Path:
        if name not in paths:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return Path(paths[name])

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    if config.threads:
        torch.set_num_threads(config.threads)
    root = Seed(seed)
    task = load_images(config.dataset, find, root.child("data"))
    make = workload.preconditioner(config, ranks)
    run_steps(Training(config, task, root, rank, ranks, make), LaunchedWorld(rank, ranks, out), config)


def launched(
    method: Annotated[str, typer.Argument(help="data_parallel or dp_kfac.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; --set overrides it.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A data set.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")] = Path("run"),
    seed: Annotated[int, typer.Option(min=0, help="Root of the seed tree.")] = 0,
) -> None:
    """Train as one rank started by a launcher."""
    from .cli.settings import build, data_paths

    settings = build(workloads.load(method).config, set_ or (), config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    try:
        train(method, settings.model_dump(), out, data_paths(data or ()), seed)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(launched)
    try:
        app(standalone_mode=False)
    except BaseException as error:
        sys.exit(report_error(error, debug=False))


if __name__ == "__main__":
    main()
