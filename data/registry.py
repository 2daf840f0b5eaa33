"""Registry of text tasks: data sets, metrics and default hyperparameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError, NotFoundError
from ..core.seeds import Seed
from .docstrings import load_docstrings
from .glue import LAYOUTS, load_glue
from .text import TextTask

#: Returns a data set's folder by name, or raises :class:`DataError`; e.g. ``session.data``.
Find = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A registered text task.

    Attributes
    ----------
    name : str
        Name in configurations.
    data_names : tuple of str
        Names of data sets that contain the task; the first available one is used. Empty if no data set is needed.
    metric : str
        Name of the score.
    classes : int
        Number of classes; ``docstrings`` has fewer if packages are missing, see ``TextTask.labels``.
    max_length : int
        Sentences are truncated to this many tokens.
    epochs, batch_size : int
        Default hyperparameters (``docs/data.md``, "Tasks").
    """

    name: str
    data_names: tuple[str, ...]
    metric: str
    classes: int
    max_length: int
    epochs: int
    batch_size: int = 32

    def load(self, find: Find, seed: Seed) -> TextTask:
        """Read the task.

        Parameters
        ----------
        find : callable
            Returns the folder of a data set, e.g. ``session.data``.
        seed : Seed
            Seed of generated tasks; must be equal in all programs of a run.

        Raises
        ------
        DataError
            The data set is not found or malformed.
        """
        if not self.data_names:
            return load_docstrings(seed, classes=self.classes)
        return load_glue(self.name, self._path(find))

    def _path(self, find: Find) -> Path:
        for name in self.data_names:
            try:
                return find(name)
            except DataError:
                continue
        names = " or ".join(f"'{n}'" for n in self.data_names)
        raise DataError(
            f"the task '{self.name}' needs a data set {names}, which is missing",
            hint=f"join with --data glue=PATH, the folder that contains {LAYOUTS[self.name].folder}/",
        )


def _glue(name: str, max_length: int, epochs: int) -> TaskEntry:
    layout = LAYOUTS[name]
    return TaskEntry(name, (name, "glue"), layout.metric, len(layout.label_names), max_length, epochs)


#: All tasks by name.
TASKS: dict[str, TaskEntry] = {
    task.name: task
    for task in (
        TaskEntry("docstrings", (), "accuracy", classes=5, max_length=32, epochs=2),
        _glue("sst2", 66, 3),
        _glue("cola", 32, 3),
        _glue("rte", 256, 4),
        _glue("mrpc", 128, 4),
        _glue("mnli", 128, 3),
        _glue("qnli", 128, 3),
        _glue("wnli", 128, 4),
    )
}


def task(name: str) -> TaskEntry:
    """Look up a task.

    Raises
    ------
    NotFoundError
        No task has that name; the hint suggests the closest one.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower().replace("-", ""), TASKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(TASKS)}"
        raise NotFoundError(f"unknown task '{name}'", hint=hint)
    return TASKS[name]
