"""Flower's Grid over farshore channels: sends messages of a ServerApp to node programs and collects their replies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import FarshoreError, RunFailedError, WireError
from ...core.message import Encoding
from ...core.message import Message as Frame
from ...core.session import ServerSession
from ..requests import Failure, receive, refuse, send
from .arrays import from_frame, round_of, to_frame
from .compat import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    Grid,
    Message,
    RecordDict,
    Run,
    error_reply,
    set_metadata,
    with_content,
)
from .flower_ids import names_by_id
from .protocol import Done, Goodbye
from .round_metrics import RoundMetrics

#: Seconds to wait for the nodes' final messages when the grid closes.
_GOODBYE_SECONDS = 10.0


@dataclass(slots=True)
class _Pending:
    """A message without a reply.

    ``expires`` is in monotonic seconds. ``awaited`` is False after a timeout; the reply is then dropped.
    """

    message: Message
    node_id: int
    round_index: int
    expires: float
    awaited: bool = True


class FarshoreGrid(Grid):
    """Implements ``flwr.serverapp.Grid``; thread-safe.

    When a node is lost, its pending messages and all later ones get the error reply ``NODE_UNAVAILABLE`` at once. A
    message without a reply within its ttl gets ``REPLY_MESSAGE_UNAVAILABLE``.

    Parameters
    ----------
    session : ServerSession
        Session of the server program.
    run : Run
        Flower's description of the run.
    encoding : Encoding, optional
        Encoding of float32 arrays sent to the nodes.
    rounds : int
        Number of rounds for progress reports; 0 = unknown.
    on_failure : callable
        Called with the error that ends the run (cancelled, or no nodes remain). Later calls of the grid raise it.
    """

    def __init__(
        self,
        session: ServerSession,
        run: Run,
        encoding: Encoding | None = None,
        *,
        rounds: int = 0,
        on_failure: Callable[[FarshoreError], None] = lambda error: None,
    ) -> None:
        self._session, self._run, self._encoding, self._on_failure = session, run, encoding, on_failure
        self._names = names_by_id(list(session.channels))
        self._ids = {name: node_id for node_id, name in self._names.items()}
        self._changed = threading.Condition()
        #: Ids of the nodes that are neither lost nor finished, by name.
        self._active = dict(self._ids)
        #: Reasons of losses, by id.
        self._lost: dict[int, str] = {}
        self._pending: dict[str, _Pending] = {}
        self._replies: dict[str, Message] = {}
        self._failure: FarshoreError | None = None
        self._closing = False
        self._metrics = RoundMetrics(session, rounds)
        self.sent = self.failures = 0
        self._listener = threading.Thread(target=self._listen, name="flower replies", daemon=True)
        self._listener.start()

    # ---- interface of flwr.serverapp.Grid --------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Replace the description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message; same as ``flwr.app.Message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Ids of the available nodes, ascending."""
        with self._changed:
            self._check()
            return sorted(self._active.values())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; returns their message ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; each is returned once."""
        with self._changed:
            self._check()
            self._expire()
            return [self._replies.pop(i) for i in dict.fromkeys(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait up to ``timeout`` seconds for the replies, which are in the order of the messages."""
        end = None if timeout is None else time.monotonic() + timeout
        message_ids = self.push_messages(messages)
        with self._changed:
            while open_ := [self._pending[i] for i in message_ids if i in self._pending]:
                self._check()
                now = time.monotonic()
                until = min(p.expires for p in open_)
                if end is not None and end <= now:
                    break
                if until <= now:
                    self._expire()
                    continue
                self._changed.wait((until if end is None else min(until, end)) - now)
            self._check()
            for pending in open_:
                pending.awaited = False
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    # ---- used by the server program ------------------------------------------------------------------------------

    @property
    def last_metrics(self) -> dict[str, float]:
        """The newest weighted mean of each metric of the clients."""
        return self._metrics.last

    def close(self) -> None:
        """Send the end of the app to the nodes, and wait briefly for their final messages."""
        with self._changed:
            self._closing = True
            names = list(self._active)
        for name in names:
            if (failure := send(self._session, name, Done().message())) is not None:
                self._lose(name, failure.reason)
        self._listener.join(_GOODBYE_SECONDS)
        with self._changed:
            self._metrics.report()

    # ---- internal ------------------------------------------------------------------------------------------------

    def _push(self, message: Message) -> str:
        node_id = message.metadata.dst_node_id
        set_metadata(message, run_id=self._run.run_id, src_node_id=SUPERLINK_NODE_ID)
        message_id, metadata = message.metadata.message_id, message.metadata
        remaining = metadata.created_at + metadata.ttl - time.time()
        round_index, expires = round_of(message), time.monotonic() + remaining
        pending = _Pending(with_content(message, RecordDict()), node_id, round_index, expires)
        with self._changed:
            self._check()
            self.sent += 1
            self._pending[message_id] = pending
            if node_id not in self._names:
                self._fail(message_id, ErrorCode.NODE_UNAVAILABLE, f"this run has no node with the id {node_id}")
            elif node_id in self._lost:
                self._fail(message_id, ErrorCode.NODE_UNAVAILABLE, self._lost[node_id])
            elif remaining <= 0:
                self._fail(message_id, ErrorCode.MESSAGE_UNAVAILABLE, "the message had expired before it was sent")
            if message_id not in self._pending:
                return message_id
        name = self._names[node_id]
        if (failure := send(self._session, name, to_frame(message, round_index, self._encoding))) is not None:
            self._lose(name, failure.reason)
        return message_id

    def _listen(self) -> None:
        """Receive replies until every node has finished or is lost."""
        while True:
            with self._changed:
                names = list(self._active)
            if not names:
                return
            try:
                outcome = receive(self._session, names)
            except FarshoreError as error:
                self._stop(error)
                return
            assert outcome is not None, "there is no deadline"
            if isinstance(outcome, Failure):
                self._lose(outcome.node, outcome.reason)
            else:
                self._handle(outcome.node, outcome.message)

    def _handle(self, name: str, frame: Frame) -> None:
        try:
            if frame.kind == Goodbye.kind:
                self._remove(name, frame)
                return
            reply = from_frame(frame, f"node {name}")
        except WireError as error:
            self._lose(name, refuse(self._session, name, error).reason)
            return
        message_id, node_id = reply.metadata.reply_to_message_id, self._ids[name]
        with self._changed:
            pending = self._pending.get(message_id)
            if pending is None or pending.node_id != node_id:
                self._session.log(f"{name}: discarded a reply to a message that is not pending")
                return
            set_metadata(reply, run_id=self._run.run_id, src_node_id=node_id, dst_node_id=SUPERLINK_NODE_ID)
            self._deliver(message_id, reply)

    def _remove(self, name: str, frame: Frame) -> None:
        """Stop receiving from a node that has finished."""
        Goodbye.read(frame, f"node {name}")
        with self._changed:
            if not self._closing:
                raise WireError(f"node {name}: 'goodbye' before the app has ended")
            self._active.pop(name, None)

    def _deliver(self, message_id: str, reply: Message) -> None:
        pending = self._pending.pop(message_id)
        self.failures += reply.has_error()
        self._metrics.add(reply, pending.round_index)
        if pending.awaited:
            self._replies[message_id] = reply
        self._changed.notify_all()

    def _fail(self, message_id: str, code: int, reason: str) -> None:
        pending = self._pending[message_id]
        reply = set_metadata(error_reply(pending.message, code, reason), src_node_id=pending.node_id)
        self._deliver(message_id, reply)

    def _expire(self) -> None:
        now = time.monotonic()
        for message_id, pending in list(self._pending.items()):
            if pending.expires <= now:
                reason = f"no reply within its ttl of {pending.message.metadata.ttl:g} s"
                self._fail(message_id, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)

    def _lose(self, name: str, reason: str) -> None:
        with self._changed:
            if self._active.pop(name, None) is None:
                return
            if self._closing:
                return
            node_id = self._ids[name]
            self._lost[node_id] = reason
            for message_id in [i for i, p in self._pending.items() if p.node_id == node_id]:
                self._fail(message_id, ErrorCode.NODE_UNAVAILABLE, reason)
            all_lost = not self._active
        self._session.log(f"lost {name}: {reason}")
        if all_lost:
            self._stop(RunFailedError(f"no nodes remain; the last one was lost: {reason}"))

    def _stop(self, error: FarshoreError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._on_failure(error)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._session.check_cancelled()
