"""What a task may make of every aggregated state before it goes down again; most leave it as it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .flat import FlatModel
from .task import Task
from .tree import Part


@runtime_checkable
class Refining(Protocol):
    """A task whose server trains too."""

    def refine(self, flat: FlatModel, state: Part, number: int) -> Part:
        """The state to go on with after round ``number``, from run seed, state and round alone.

        ``flat`` is overwritten, ``state`` is not.
        """


def refined(task: Task, flat: FlatModel, state: Part, number: int) -> Part:
    """The state as the task would have it."""
    refine = getattr(task, "refine", None)  # the protocol itself is slow to ask
    return refine(flat, state, number) if refine else state
