"""The node program of a work queue: works on items in threads, one per slot, and answers every deal."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from ...core.bounds import MAX_ERROR, cut
from ...core.errors import FarshoreError, RunCancelledError
from ...core.message import Message, Tensor
from ...core.processes import user_code_location
from ...core.session import NodeSession
from .config import WorkQueueConfig
from .inputs import NodeInputs
from .item import Outcome, WorkItem
from .protocol import ASSETS, FROM_SERVER, Cancel, Deal, End, Failed, Hello, Result, Stopped
from .workload import Cancellation, Job, Perform, WorkQueueWorkload

_SERVER = "the server"


@dataclass(frozen=True)
class _Assigned:
    """A deal on this node."""

    message: Deal
    step: int
    cancellation: Cancellation = field(default_factory=Cancellation)


#: What the program waits for: a message or the end of the channel, or an answer to send.
_Event: TypeAlias = Message | Exception | tuple[int, Message]


def work(workload: WorkQueueWorkload[Any], session: NodeSession, config: WorkQueueConfig) -> None:
    """Work on items until the server says that there is none."""
    slots = config.slots or max(1, cores() // max(1, workload.threads(config)))
    with ExitStack() as stack:
        performers = [stack.enter_context(workload.performer(config, session)) for _ in range(slots)]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="farshore-items-"))
        node = _Node(session, Path(folder), performers)
        stack.callback(node.stop)
        node.run()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Node:
    """The loop of a node program.

    Messages arrive in a thread of their own and answers are sent by :meth:`run`, so that neither waits for an item.
    """

    def __init__(self, session: NodeSession, folder: Path, performers: list[Perform]) -> None:
        self._session, self._folder = session, folder
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._deals: SimpleQueue[_Assigned | None] = SimpleQueue()
        self._assigned: dict[int, _Assigned] = {}
        self._inputs = NodeInputs(session.cache / "assets", folder / "inputs")
        self._receiver = threading.Thread(target=self._receive, name="queue messages", daemon=True)
        self._workers = [
            threading.Thread(target=self._work, args=(perform,), name=f"item slot {number}", daemon=True)
            for number, perform in enumerate(performers, 1)
        ]

    def run(self) -> None:
        """Answer messages until the end of the queue."""
        self._session.channel.send(Hello(len(self._workers)).message())
        for thread in (self._receiver, *self._workers):
            thread.start()
        while True:
            match self._events.get():
                case Exception() as error:
                    raise error
                case Message() as message:
                    if not self._handle(message):
                        return
                case (deal, answer):
                    self._assigned.pop(deal, None)
                    self._session.channel.send(answer)

    def stop(self) -> None:
        """Cancel all items, and wait until the work on them has ended."""
        for assigned in self._assigned.values():
            assigned.cancellation.request()
        for _ in self._workers:
            self._deals.put(None)
        for thread in self._workers:
            if thread.ident is not None:
                thread.join()
        self._inputs.close()

    def _receive(self) -> None:
        """Receive until the end of the queue or of the channel."""
        try:
            while True:
                message = self._session.channel.receive()
                self._events.put(message)
                if End.matches(message):
                    return
        except Exception as error:
            self._events.put(error)

    def _handle(self, message: Message) -> bool:
        """Handle a message; returns whether further ones follow."""
        if ASSETS.accepts(message):
            if (answer := self._inputs.answer(message)) is not None:
                self._session.channel.send(answer)
            return True
        match FROM_SERVER.read(message, _SERVER):
            case Deal(deal=deal) as dealt:
                self._assigned[deal] = assigned = _Assigned(dealt, message.step)
                self._deals.put(assigned)
            case Cancel(deal=deal):
                if deal in self._assigned:
                    self._assigned[deal].cancellation.request()
            case End():
                return False
        return True

    # ---- in the threads of the slots -----------------------------------------------------------------------------

    def _work(self, perform: Perform) -> None:
        while (assigned := self._deals.get()) is not None:
            self._events.put((assigned.message.deal, self._answer(perform, assigned)))

    def _answer(self, perform: Perform, assigned: _Assigned) -> Message:
        deal, cancellation = assigned.message, assigned.cancellation
        began = time.monotonic()
        try:
            cancellation.check()
            outcome = self._perform(perform, assigned)
            cancellation.check()
        except RunCancelledError:
            return Stopped(deal.deal).message(step=assigned.step)
        except BaseException as error:  # SystemExit too: the work may be a user's code
            if cancellation.requested:
                return Stopped(deal.deal).message(step=assigned.step)
            return Failed(deal.deal, cut(_reason(error), MAX_ERROR)).message(step=assigned.step)
        result = Result.of(deal.deal, time.monotonic() - began, outcome)
        tensors = {name: Tensor(array) for name, array in outcome.tensors.items()}
        return result.message(step=assigned.step, tensors=tensors)

    def _perform(self, perform: Perform, assigned: _Assigned) -> Outcome:
        deal = assigned.message
        config: Mapping[str, Any] = json.loads(deal.config)
        item = WorkItem(config, deal.seed, {name: self._inputs.digest(name) for name in deal.inputs})
        with tempfile.TemporaryDirectory(prefix=f"{deal.deal}-", dir=self._folder) as folder:
            return perform(Job(item, self._find, Path(folder), assigned.cancellation))

    def _find(self, name: str) -> Path:
        return self._inputs.path(name) or self._session.data(name)


def _reason(error: BaseException) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, FarshoreError):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ") + user_code_location(error)
