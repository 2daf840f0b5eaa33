"""Runs a method on one node alone: both of its programs in this process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from ...core.session import Workload
from ...engines.work_queue.item import Outcome, Value
from ..in_process import InProcessRun
from .cells import check_alone

#: Names of metrics that are times or rates: no two runs agree on them.
_MEASURED = re.compile(r"seconds|_ms$|_per_second$|_bytes$")

#: Variables that set the number of threads of numerical libraries, which they read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def run_alone(workload: Workload, config: BaseModel, seed: int, folder: Path, data: Mapping[str, Path]) -> Outcome:
    """Run a method, and return its last metrics and the numbers and texts of its result.

    A method that has a member ``sweep_outcome(result, directory)`` returns an :class:`.Outcome` itself, from its result
    and the directory of its run.

    Parameters
    ----------
    seed : int
        Root of the run's seed tree: a run over real nodes with ``--seed`` gives the same.
    folder : Path
        Directory of the run.
    data : Mapping[str, Path]
        Data sets by name.

    Raises
    ------
    FarshoreError
        A program failed.
    """
    roles = check_alone(workload, config)
    latest: dict[str, float] = {}
    run = InProcessRun(
        workload,
        config,
        folder,
        tuple(roles),
        seed,
        data,
        roles,
        on_metrics=lambda step, values: latest.update({name: float(value) for name, value in values.items()}),
    )
    began = time.perf_counter()
    result = run.run()
    seconds = time.perf_counter() - began
    own = getattr(workload, "sweep_outcome", None)
    if own is not None:
        found: Outcome = own(result, folder)
        return Outcome(found.metrics, {"run_seconds": seconds, **found.measured}, found.tensors)
    values: dict[str, Value] = {**latest, **{n: v for n, v in result.items() if type(v) in (bool, int, float, str)}}
    measured = {n: float(v) for n, v in values.items() if _MEASURED.search(n) and not isinstance(v, str)}
    metrics = {n: v for n, v in values.items() if n not in measured}
    return Outcome(metrics, {"run_seconds": seconds, **measured})


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables with which a process computes with ``threads`` threads."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


def limit_threads(workload: Workload, threads: int) -> None:
    """Let torch, if the method uses it, compute with ``threads`` threads in this process."""
    assert os.environ.get("OMP_NUM_THREADS") == str(threads), "the process was not started with thread_environment"
    if workload.uses_torch:
        import torch

        torch.set_num_threads(threads)
