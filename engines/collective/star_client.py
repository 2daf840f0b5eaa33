"""The node side of the star: sends a rank's part of each collective, matches replies, queues control messages."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch

from ...core.control import Control, fields_of, read_fields
from ...core.errors import FarshoreError, RunFailedError, WireError
from ...core.message import Message
from ...core.session import Channel
from .protocol import FROM_SERVER, KINDS, Done, Failed, Form, Go, Lost, Reply, Request, Stored, StoreRequest
from .tensors import from_wire, to_wire
from .thread_waits import ThreadWaits

Tensors: TypeAlias = "dict[str, torch.Tensor]"
#: Messages of the server that :meth:`StarClient.receive_control` returns.
Answer: TypeAlias = Form | Go | Done | Lost

_SERVER = "the server"

#: Collectives whose callbacks may run at once: at least the number of DDP's buckets.
MOST_CALLBACKS = 256


class RanksChangedError(FarshoreError):
    """A rank was lost or a node rejoined: the group has ended and the run continues with a new one."""


class PendingReply:
    """A collective's reply that has not arrived yet.

    Parameters
    ----------
    unpack : callable
        ``unpack(tensors)``: writes the received tensors to their place and returns the collective's result.

    Attributes
    ----------
    future : Future of list of Tensor
        The result of ``unpack``, or an error.
    error : Exception or None
        That error: the one that ended the group, or a :class:`WireError` if the reply does not fit.
    arrived : Event
        Set once the reply, or the error that ended the group, has arrived; the future follows.
    """

    def __init__(self, unpack: Callable[[Tensors], list[torch.Tensor]]) -> None:
        self._unpack = unpack
        self.error: Exception | None = None
        self.arrived = threading.Event()
        self._received: torch.futures.Future[Tensors | Exception] = torch.futures.Future()
        # An exception set as a future's result from Python is a value to torch's C++, which reads it as tensors and
        # crashes. An exception raised in a callback is an error there too.
        self.future: torch.futures.Future[list[torch.Tensor]] = self._received.then(self._finish)

    def _finish(self, received: torch.futures.Future[Tensors | Exception]) -> list[torch.Tensor]:
        found = received.value()
        if isinstance(found, Exception):
            self.error = found
            raise found
        try:
            return self._unpack(found)
        except (KeyError, RuntimeError) as error:
            self.error = WireError(f"{_SERVER}: a reply does not fit the tensors of this rank: {error}")
            raise self.error from error

    def resolve(self, tensors: Tensors) -> None:
        """Complete the collective with the server's reply."""
        self.arrived.set()
        self._received.set_result(tensors)

    def fail(self, error: Exception) -> None:
        """Fail the pending collective with ``error``."""
        self.arrived.set()
        if not self._received.done():
            self._received.set_result(error)


class StarClient:
    """Exchanges collectives and control messages with the server over a session's channel.

    Any thread may send; a thread of the client receives. Replies of an earlier generation are dropped.

    Parameters
    ----------
    channel : Channel
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, int], PendingReply] = {}
        #: Replies that arrived before their collective was called here.
        self._early: dict[tuple[str, int], Tensors] = {}
        self._sequence_numbers: dict[str, int] = defaultdict(int)
        self._error: Exception | None = None
        self._aborted = threading.Event()
        #: Called from the receiving thread when the group is aborted.
        self.on_abort: Callable[[], None] = _nothing
        #: An exception, at the end, is the error that ended the conversation.
        self._answers: queue.Queue[Answer | Exception] = queue.Queue()
        #: Numbers of the requests and the replies.
        self._store_replies: queue.Queue[tuple[int, bytes] | Exception] = queue.Queue()
        #: What this rank's threads wait for.
        self.waits = ThreadWaits(channel)
        self.generation = -1
        #: Training step that collectives are accounted to.
        self.step = 0
        # Callbacks of collectives see this rank's process groups, as the thread that makes this client does.
        self._context = contextvars.copy_context()
        # Callbacks may wait for further collectives (PowerSGD's do), so they never run in the receiving thread.
        self._callbacks = ThreadPoolExecutor(MOST_CALLBACKS, "collective callbacks")
        self._thread = threading.Thread(target=self._receive, name="collectives", daemon=True)
        self._thread.start()

    def start_generation(self, generation: int) -> None:
        """Start a new group; discard all state of the previous one."""
        with self._lock:
            self.generation = generation
            self._pending.clear()
            self._early.clear()
            self._sequence_numbers.clear()
            self._store_replies = queue.Queue()
            if isinstance(self._error, RanksChangedError):
                self._error = None
                self._aborted.clear()

    def abort(self, error: Exception) -> None:
        """Abort the group; pending and later collectives raise ``error``."""
        with self._lock:
            self._error = self._error or error
            pending = list(self._pending.values())
            self._pending.clear()
        for reply in pending:
            reply.fail(error)
        self._store_replies.put(error)
        self._aborted.set()
        self.on_abort()

    @property
    def error(self) -> Exception | None:
        """The error that ended the group, or None."""
        return self._error

    def wait_for_error(self, seconds: float) -> Exception | None:
        """Wait until the group is aborted; return its error, or None after ``seconds``."""
        self._aborted.wait(seconds)
        return self._error

    def next_number(self, sequence: str) -> int:
        """Return the next number of a sequence; all ranks count the calls of a group alike."""
        with self._lock:
            self._sequence_numbers[sequence] += 1
            return self._sequence_numbers[sequence]

    def send_part(self, kind: str, number: int, request: Request, tensors: Mapping[str, torch.Tensor]) -> None:
        """Send this rank's part of a collective; ``number`` is its number in the request's group."""
        if self._error is not None:
            raise self._error
        packed = {name: to_wire(tensor) for name, tensor in tensors.items()}
        self._channel.send(Message(kind, step=self.step, micro=number, tensors=packed, fields=fields_of(request)))

    def expect(self, sequence: str, number: int, reply: PendingReply) -> PendingReply:
        """Register a pending reply; call it before :meth:`send_part`, as the reply may arrive at once."""
        with self._lock:
            if self._error is not None:
                raise self._error
            tensors = self._early.pop((sequence, number), None)
            if tensors is None:
                self._pending[sequence, number] = reply
                return reply
        reply.resolve(tensors)
        return reply

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send a control message with tensors."""
        packed = {name: to_wire(tensor) for name, tensor in (tensors or {}).items()}
        self._channel.send(control.message(step=self.step, tensors=packed))

    def store_request(self, number: int, request: StoreRequest) -> bytes:
        """Send a request to the rendezvous store; block until the reply arrives, if it has one."""
        if self._error is not None:
            raise self._error
        self._channel.send(request.message(micro=number))
        while request.do != "set":
            reply = self._store_replies.get()
            if isinstance(reply, Exception):
                raise reply
            answered, value = reply
            if answered == number:
                return value
        return b""

    def receive_control(self) -> Answer:
        """Return the server's next answer; blocks.

        Raises
        ------
        FarshoreError
            The channel or the run failed, or the server sent an invalid message.
        """
        with self.waits.waiting(lambda: not self._answers.empty()):
            answer = self._answers.get()
        if isinstance(answer, Exception):
            self._answers.put(answer)
            raise answer
        return answer

    def _receive(self) -> None:
        try:
            while True:
                self._handle(self._channel.receive())
                self.waits.update()
        except Exception as error:
            self.abort(error)
            self._answers.put(error)
            self.waits.update()
            self._callbacks.shutdown(wait=False)

    def _handle(self, message: Message) -> None:
        if message.kind in KINDS:
            self._dispatch_reply(message)
            return
        match FROM_SERVER.read(message, _SERVER):
            case Stored(value=value):
                self._store_replies.put((message.micro, value))
            case Failed(why=why):
                raise RunFailedError(why)
            case Form() as form:
                # In this thread: the group may end before another one has taken the message from the queue.
                self.start_generation(form.generation)
                self._answers.put(form)
            case Lost(why=why) as lost:
                self.abort(RanksChangedError(why))
                self._answers.put(lost)
            case answer:
                self._answers.put(answer)

    def _dispatch_reply(self, message: Message) -> None:
        fields = read_fields(Reply, message, _SERVER)
        if fields.generation != self.generation:
            return
        key = fields.group, message.micro
        tensors = {name: from_wire(tensor) for name, tensor in message.tensors.items()}
        with self._lock:
            reply = self._pending.pop(key, None)
            if reply is None:
                self._early[key] = tensors
        if reply is not None:
            reply.arrived.set()
            self._callbacks.submit(self._context.copy().run, reply.resolve, tensors)


def _nothing() -> None:
    pass
