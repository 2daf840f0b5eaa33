"""Registry of methods: names and import paths, so that a method is imported only when it is used."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points

from .errors import MissingExtraError, NotFoundError
from .projects import GROUP, methods_in_use
from .session import Workload

#: ``name -> "module:attribute"``. Other packages add methods with the entry-point group ``farshore.workloads``.
BUILT_IN: dict[str, str] = {
    "data_parallel": "farshore.engines.data_parallel.image_workload:WORKLOAD",
    "dp_kfac": "farshore.algorithms.dp_kfac.workload:WORKLOAD",
    "flower": "farshore.engines.flower.workload:WORKLOAD",
    "ping": "farshore.engines.ping.workload:WORKLOAD",
    "split_fine_tuning": "farshore.algorithms.split_fine_tuning.workload:WORKLOAD",
    "split_segment": "farshore.engines.split.workload:WORKLOAD",
    "vhl": "farshore.algorithms.vhl.workload:WORKLOAD",
}

#: Package that methods import -> extra that installs it.
_EXTRAS = {
    "torch": "train",
    "transformers": "text",
    "sklearn": "text",
    "onnxruntime": "edge",
    "pyarrow": "server",
    "torchvision": "vision",
    "scipy": "vision",
    "PIL": "vision",
    "flwr": "federated",
}


def names() -> dict[str, str]:
    """Return all known methods with their import paths; built-in ones cannot be overridden."""
    installed = {e.name: e.value for e in entry_points(group=GROUP)}
    return {**installed, **methods_in_use(), **BUILT_IN}


def load(name: str) -> Workload:
    """Import the method called ``name``.

    Raises
    ------
    NotFoundError
        No method has that name; the hint suggests the closest.
    MissingExtraError
        A package that the method imports is not installed.
    """
    table = names()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else "see 'farshore methods'"
        raise NotFoundError(f"unknown method '{name}'", hint=hint)
    return _import(table[name])


def load_local(name: str) -> Workload:
    """Import a method by name or by an import path ``module:attribute``; for simulations only.

    An import path executes arbitrary code, so nodes and servers accept names only.
    """
    return _import(name) if ":" in name else load(name)


def _import(path: str) -> Workload:
    module, _, attribute = path.partition(":")
    try:
        workload: Workload = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _EXTRAS:
            raise MissingExtraError(missing, _EXTRAS[missing]) from error
        raise
    return workload
