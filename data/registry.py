"""The table of text tasks: what data each needs, how it is scored, and the defaults that suit it."""

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

#: Gives a data set's folder by name, and raises :class:`DataError` if there is none: ``session.data``.
Find = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task by name.

    Attributes
    ----------
    name : str
        What a configuration calls it.
    data_names : tuple of str
        Data sets that hold it, the first that a node has is used; empty if every machine has the data
        already.
    metric : str
        Name of its score.
    classes : int
        Number of classes; ``docstrings`` has fewer where packages are missing, see ``TextTask.labels``.
    max_length : int
        Tokens that a sentence is cut to.
    epochs, batch_size : int
        Defaults of spec section 5 (for ``docstrings``: ours).
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
            ``session.data``, or anything that turns a data set's name into a folder.
        seed : Seed
            For tasks that are made rather than read. All programs of a run must give the same.

        Raises
        ------
        DataError
            The data set is not there or not in the right format.
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
        names = " nor ".join(f"'{n}'" for n in self.data_names)
        raise DataError(
            f"the task '{self.name}' needs a data set, and there is no {names}",
            hint=f"join with --data glue=PATH, the folder that holds {LAYOUTS[self.name].folder}/",
        )


def _glue(name: str, max_length: int, epochs: int) -> TaskEntry:
    layout = LAYOUTS[name]
    return TaskEntry(name, (name, "glue"), layout.metric, len(layout.label_names), max_length, epochs)


#: Every task by name.
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
    """The entry called ``name``.

    Raises
    ------
    NotFoundError
        No task has that name; the nearest is suggested.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower().replace("-", ""), TASKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(TASKS)}"
        raise NotFoundError(f"no task is called '{name}'", hint=hint)
    return TASKS[name]
