"""A node's end of the star: questions to the hub, answers that come in any order, and what the server wants."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from ...core.errors import FarshoreError, RunFailedError
from ...core.message import Message, Scalar, Tensor
from ...core.session import Channel
from .tensors import from_wire, to_wire

Tensors: TypeAlias = "dict[str, torch.Tensor]"


class RanksChangedError(FarshoreError):
    """A rank was lost, or one came: this group is over, and the run goes on with another."""


class Answer:
    """What a collective is waited for by."""

    def __init__(self) -> None:
        self._came: torch.futures.Future[Tensors | Exception] = torch.futures.Future()
        self._take: Callable[[Tensors], list[torch.Tensor]] = lambda tensors: list(tensors.values())
        # An error set on a future from Python is a value to torch's C++, which takes it for tensors and crashes; one
        # that a callback raises is an error there too.
        self.future: torch.futures.Future[list[torch.Tensor]] = self._came.then(self._taken)

    def _taken(self, came: torch.futures.Future[Tensors | Exception]) -> list[torch.Tensor]:
        found = came.value()
        if isinstance(found, Exception):
            raise found
        return self._take(found)

    def expects(self, take: Callable[[Tensors], list[torch.Tensor]]) -> Answer:
        """Say what is to be done with the tensors that come."""
        self._take = take
        return self

    def came(self, tensors: Tensors) -> None:
        """The hub's answer."""
        self._came.set_result(tensors)

    def fail(self, error: Exception) -> None:
        """There will be none."""
        if not self._came.done():
            self._came.set_result(error)


class StarClient:
    """Talks to the hub over a session's channel.

    Programs send from any thread; one thread of its own receives. Answers of a generation that is over are dropped.

    Parameters
    ----------
    channel : Channel
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, int], Answer] = {}
        self._early: dict[tuple[str, int], Tensors] = {}
        self._numbers: dict[str, int] = defaultdict(int)
        self._broken: Exception | None = None
        self._over = threading.Event()
        #: Called, from the thread that receives, when the group is over.
        self.on_over: Callable[[], None] = _nothing
        #: What the server said that answers no collective; a failure of the channel is the last of it.
        self.control: queue.Queue[Message | Exception] = queue.Queue()
        self._stored: queue.Queue[Message | Exception] = queue.Queue()
        self.generation = -1
        #: The training step that collectives are accounted under.
        self.step = 0
        self._thread = threading.Thread(target=self._receive, name="collectives", daemon=True)
        self._thread.start()

    def begin(self, generation: int) -> None:
        """A new group: what belongs to the last one is forgotten."""
        with self._lock:
            self.generation = generation
            self._waiting.clear()
            self._early.clear()
            self._numbers.clear()
            self._stored = queue.Queue()
            if isinstance(self._broken, RanksChangedError):
                self._broken = None
                self._over.clear()

    def dissolve(self, error: Exception) -> None:
        """End the group: whoever waits is told, and so is whoever asks."""
        with self._lock:
            self._broken = self._broken or error
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for answer in waiting:
            answer.fail(error)
        self._stored.put(error)
        self._over.set()
        self.on_over()

    @property
    def broken(self) -> Exception | None:
        """Why nothing goes any more; None while it goes."""
        return self._broken

    def verdict(self, seconds: float) -> Exception | None:
        """What broke the group, once the server says so; None if it says nothing in time."""
        self._over.wait(seconds)
        return self._broken

    def number(self, place: str) -> int:
        """The next number of a sequence that all its ranks count alike."""
        with self._lock:
            self._numbers[place] += 1
            return self._numbers[place]

    def ask(
        self, kind: str, group: str, number: int, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, Scalar]
    ) -> None:
        """Send a rank's part of a collective."""
        if self._broken is not None:
            raise self._broken
        told = {"group": group, "generation": self.generation, **fields}
        packed = {name: to_wire(tensor) for name, tensor in tensors.items()}
        self._channel.send(Message(kind, step=self.step, micro=number, tensors=packed, fields=told))

    def expect(self, place: str, number: int, answer: Answer) -> Answer:
        """Register who waits for an answer; before asking, as it may come at once."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            tensors = self._early.pop((place, number), None)
            if tensors is None:
                self._waiting[place, number] = answer
                return answer
        answer.came(tensors)
        return answer

    def tell(self, what: str, tensors: Mapping[str, Tensor] | None = None, **fields: Scalar) -> None:
        """Say something that is no collective."""
        message = Message("control", step=self.step, tensors=tensors or {}, fields={"what": what, **fields})
        self._channel.send(message)

    def store(self, number: int, fields: Mapping[str, Scalar], answered: bool) -> bytes:
        """Ask the rendezvous store; blocks until it answers."""
        if self._broken is not None:
            raise self._broken
        self._channel.send(Message("control", micro=number, fields={"what": "store", **fields}))
        while answered:
            said = self._stored.get()
            if isinstance(said, Exception):
                raise said
            if said.micro == number:
                return bytes(said.fields["value"])  # type: ignore[arg-type]
        return b""

    def hear(self, timeout: float | None = None) -> Message:
        """The next thing that the server says; blocks.

        Raises
        ------
        FarshoreError
            The channel broke.
        TimeoutError
            Nothing came in time.
        """
        try:
            said = self.control.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("the server said nothing") from None
        if isinstance(said, Exception):
            self.control.put(said)
            raise said
        return said

    def _receive(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except Exception as error:
                self.dissolve(error)
                self.control.put(error)
                return
            if message.kind != "control":
                self._answered(message)
            elif message.fields.get("what") == "lost":
                self.dissolve(RanksChangedError(str(message.fields.get("why", "the ranks changed"))))
                self.control.put(message)
            elif message.fields.get("what") == "stored":
                self._stored.put(message)
            elif message.fields.get("what") == "failed":
                self.dissolve(RunFailedError(str(message.fields.get("why"))))
            else:
                self.control.put(message)

    def _answered(self, message: Message) -> None:
        if message.fields.get("generation") != self.generation:
            return
        place, number = str(message.fields["group"]), message.micro
        tensors = {name: from_wire(tensor) for name, tensor in message.tensors.items()}
        with self._lock:
            answer = self._waiting.pop((place, number), None)
            if answer is None:
                self._early[place, number] = tensors
        if answer is not None:
            answer.came(tensors)


def _nothing() -> None:
    pass
