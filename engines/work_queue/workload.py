"""The base class of methods whose work is a queue of independent items."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel

from ...core.errors import RunCancelledError
from ...core.session import NodeSession, ServerSession
from .config import WorkQueueConfig
from .item import ItemResult, Outcome, WorkItem

Config = TypeVar("Config", bound=WorkQueueConfig)

#: Returns the path of a data set by name; raises DataError if it was not given.
FindData: TypeAlias = Callable[[str], Path]


class Cancellation:
    """Tells the work on an item that its result is no longer needed. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def requested(self) -> bool:
        """Whether the work may end."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`RunCancelledError` if the work may end; long work calls it now and then."""
        if self.requested:
            raise RunCancelledError("the item was cancelled")

    def request(self) -> None:
        """Request it, once."""
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_request(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when it is requested, or now if it was."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()


@dataclass(frozen=True)
class Job:
    """An item, and what the work on it may use.

    Attributes
    ----------
    item : WorkItem
    find : callable
        Returns the path of a data set of this machine, or of an input that the server has sent.
    folder : Path
        Empty folder for files of this item, which are deleted afterwards.
    cancellation : Cancellation
    """

    item: WorkItem
    find: FindData
    folder: Path
    cancellation: Cancellation = field(default_factory=Cancellation)


#: Does the work of an item. What it raises is the reason why the item failed.
Perform: TypeAlias = Callable[[Job], Outcome]


class WorkQueueWorkload(ABC, Generic[Config]):
    """A method whose items are dealt to whichever node is free; it continues without lost nodes, and others may join.

    A method names itself, sets :attr:`config`, and implements :meth:`items`, :meth:`perform` and :meth:`summarize`.
    """

    name: str
    summary: str
    config: type[BaseModel] = WorkQueueConfig
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = False
    nodes_may_join = True

    def inputs(self, config: Config) -> Sequence[str]:
        """Return the data sets of the server, files, that are sent to each node, once; none here."""
        return ()

    @abstractmethod
    def items(self, config: Config, inputs: Mapping[str, str], results: Sequence[ItemResult]) -> Sequence[WorkItem]:
        """Return the next items.

        It is called at the beginning, and again whenever all items so far are finished or have failed, until it returns
        none. It must depend on its arguments alone.

        Parameters
        ----------
        config
        inputs : Mapping[str, str]
            SHA-256 of each of :meth:`inputs`.
        results : sequence of ItemResult
            Those of all earlier items, in the order of the items; empty at first.
        """

    @abstractmethod
    def perform(self, config: Config, job: Job) -> Outcome:
        """Do the work of an item, on a node; several threads may call it at the same time.

        The outcome must depend on the item alone. What it raises is recorded as the reason of the failure.
        """

    @abstractmethod
    def summarize(self, config: Config, results: Sequence[ItemResult], session: ServerSession) -> dict[str, Any]:
        """Return the result of the run, JSON-able, from the results in the order of the items."""

    @contextmanager
    def performer(self, config: Config, session: NodeSession) -> Iterator[Perform]:
        """Provide what does the work of one slot of a node, one item at a time; by default :meth:`perform`."""
        yield lambda job: self.perform(config, job)

    def threads(self, config: Config) -> int:
        """Return the threads that an item uses, by which ``slots=0`` divides the cores of a node."""
        return 1

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return the data sets that each node must hold; none here."""
        return ()

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Deal the items until all are finished."""
        from .server import serve

        return serve(self, session, config)  # type: ignore[arg-type]

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Work on items until there is none."""
        from .node import work

        work(self, session, config)  # type: ignore[arg-type]
