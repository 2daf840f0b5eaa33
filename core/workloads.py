"""Registry of methods: names and import paths, so that a method is imported only when it is used."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points

from pydantic import BaseModel

from .errors import FarshoreError, MethodError, MissingExtraError, NotFoundError
from .packages import EXTRAS
from .processes import user_code_location
from .projects import GROUP, methods_in_use
from .session import Workload

#: ``name -> "module:attribute"``. Other packages add methods with the entry-point group ``farshore.workloads``.
BUILT_IN: dict[str, str] = {
    "ccgc": "farshore.algorithms.ccgc.workload:WORKLOAD",
    "data_parallel": "farshore.engines.data_parallel.image_workload:WORKLOAD",
    "dp_kfac": "farshore.algorithms.dp_kfac.workload:WORKLOAD",
    "flower": "farshore.engines.flower.workload:WORKLOAD",
    "ping": "farshore.engines.ping.workload:WORKLOAD",
    "split_fine_tuning": "farshore.algorithms.split_fine_tuning.workload:WORKLOAD",
    "split_segment": "farshore.engines.split.workload:WORKLOAD",
    "sweep": "farshore.simulations.sweeps.workload:WORKLOAD",
    "vhl": "farshore.algorithms.vhl.workload:WORKLOAD",
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
        A package of farshore's extras that the method imports is not installed.
    MethodError
        The method cannot be imported.
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


@contextmanager
def method_code(action: str) -> Iterator[None]:
    """Convert whatever the code of a method raises to a :class:`MethodError`, except farshore's own errors.

    Parameters
    ----------
    action : str
        What fails, e.g. ``the method 'x' cannot be imported``.
    """
    try:
        yield
    except (FarshoreError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit too: a module may call exit() while it is imported
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}"[:300].rstrip(": ")
        raise MethodError(
            f"{action}: {reason}{user_code_location(error)}", hint="repair or reinstall the method's package"
        ) from error


def _import(path: str) -> Workload:
    module, _, attribute = path.partition(":")
    with method_code(f"the method at {path} cannot be imported"):
        try:
            workload: Workload = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if missing in EXTRAS:
                raise MissingExtraError(missing, EXTRAS[missing]) from error
            raise
        _check(workload)
    return workload


def _check(workload: Workload) -> None:
    """Raise AttributeError or TypeError if a required member is missing or of a wrong kind."""
    if not isinstance(workload.name, str) or not isinstance(workload.summary, str):
        raise TypeError("its name and summary must be strings")
    if not (isinstance(workload.config, type) and issubclass(workload.config, BaseModel)):
        raise TypeError("its config must be a pydantic model class")
    if workload.on_lost_node not in ("restart", "continue"):
        raise TypeError("its on_lost_node must be 'restart' or 'continue'")
    for member in (workload.node_data, workload.server_program, workload.node_program):
        if not callable(member):
            raise TypeError("node_data, server_program and node_program must be methods")
    bool(workload.uses_torch)
