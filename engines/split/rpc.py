"""Client of a remote segment: request/reply over the run's channel, one request at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import TypeVar

from ...core.control import Control
from ...core.errors import PeerLostError
from ...core.message import Message
from ...core.message import Tensor as WireTensor
from ...core.session import NodeSession
from .protocol import Close, Done, Forward, Gradients, Output, Step
from .proxy_parameter import GradientChange
from .turns import require_position

SERVER = "the server"
Reply = TypeVar("Reply", bound=Control)


class SegmentClient:
    """Thread-safe client; numbers messages by optimizer step and micro-batch.

    Parameters
    ----------
    session : NodeSession
    """

    def __init__(self, session: NodeSession) -> None:
        self.session = session
        self.step = 0
        self.micro = 0
        self.closed = False
        self._last_id = 0
        # Appended to by finalizers, which may run while this thread holds the lock: access it without the lock.
        self._released: deque[int] = deque()
        self._lock = threading.RLock()

    def request(
        self, request: Control, reply: type[Reply], tensors: Mapping[str, WireTensor] | None = None
    ) -> tuple[Reply, Message]:
        """Send a request of the current step; return the reply, and its message with the tensors.

        Raises
        ------
        PeerLostError, RunFailedError
            The server is lost, or its program failed.
        WireError
            The server's reply is not a valid ``reply`` to this request.
        """
        with self._lock:
            self._send(request, tensors)
            message = self.session.channel.receive()
            header = reply.read(message, SERVER)
            if reply in (Output, Gradients):
                require_position(message, SERVER, self.step, self.micro)
            return header, message

    def forward(
        self, *, train: bool, backward: bool, tokens: int, tensors: Mapping[str, WireTensor]
    ) -> tuple[int, Message]:
        """Request a forward pass; return its id and the reply. Arguments as in :class:`~.protocol.Forward`."""
        with self._lock:
            self._last_id += 1
            released = tuple(self._released.popleft() for _ in range(len(self._released)))
            _, message = self.request(Forward(train, backward, tokens, self._last_id, released), Output, tensors)
            self.micro += 1
            return self._last_id, message

    def release(self, forward_id: int) -> None:
        """Mark a forward pass as never needing a backward pass; sent to the server with the next forward request."""
        self._released.append(forward_id)

    def commit(self, change: GradientChange, learning_rate: float) -> None:
        """Request an optimizer step and start the next one."""
        with self._lock:
            self._send(Step(*change, learning_rate))
            self.step += 1
            self.micro = 0

    def close(self) -> None:
        """End the run; idempotent."""
        with self._lock:
            if not self.closed:
                try:
                    self.request(Close(), Done)
                finally:
                    self.closed = True

    def _send(self, request: Control, tensors: Mapping[str, WireTensor] | None = None) -> None:
        if self.closed:
            raise PeerLostError("this split model is closed", hint="call farshore.split again on a whole model")
        self.session.channel.send(request.message(step=self.step, micro=self.micro, tensors=tensors))
