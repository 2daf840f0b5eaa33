"""Client of a remote segment: request/reply over the run's channel, one request at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from ...core.errors import PeerLostError, WireError
from ...core.message import Message, Scalar
from ...core.message import Tensor as WireTensor
from ...core.session import NodeSession


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
        self, kind: str, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor] | None = None
    ) -> Message:
        """Send a message of the current step and return the reply.

        Raises
        ------
        PeerLostError, RunFailedError
            The server is lost, or its program failed.
        """
        with self._lock:
            self.send(kind, fields, tensors)
            return self.session.channel.receive()

    def send(self, kind: str, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Send a message that has no reply; raises as :meth:`request` does."""
        if self.closed:
            raise PeerLostError("this split model is closed", hint="call farshore.split again on a whole model")
        with self._lock:
            message = Message(kind, step=self.step, micro=self.micro, fields=fields, tensors=tensors or {})
            self.session.channel.send(message)

    def forward(self, fields: Mapping[str, Scalar], tensors: Mapping[str, WireTensor]) -> tuple[int, Message]:
        """Request a forward pass; return its id and the reply."""
        with self._lock:
            self._last_id += 1
            forward_id = self._last_id
            released = ",".join(str(self._released.popleft()) for _ in range(len(self._released)))
            reply = self.request("activation", {**fields, "id": forward_id, "free": released}, tensors)
            self.micro += 1
        if reply.kind != "activation":
            raise WireError(f"expected 'activation' from the server, got '{reply.kind}'")
        return forward_id, reply

    def release(self, forward_id: int) -> None:
        """Mark a forward pass as never needing a backward pass; the next forward request tells the server."""
        self._released.append(forward_id)

    def commit(self, fields: Mapping[str, Scalar]) -> None:
        """Request an optimizer step and start the next one."""
        with self._lock:
            self.send("control", {**fields, "what": "step"})
            self.step += 1
            self.micro = 0

    def close(self) -> None:
        """End the run; idempotent."""
        with self._lock:
            if not self.closed:
                try:
                    self.request("control", {"what": "close"})
                finally:
                    self.closed = True
