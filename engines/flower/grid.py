"""A Grid on our channels: what a ServerApp sends goes to node programs, what they reply wakes whoever waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import FarshoreError, PeerLostError, RunFailedError, WireError
from ...core.message import Encoding
from ...core.message import Message as Frame
from ...core.session import ServerSession
from .arrays import from_frame, round_of, to_frame
from .compat import SUPERLINK_NODE_ID, ErrorCode, Grid, Message, RecordDict, Run, address, failed, with_content
from .numbers import numbered
from .round_metrics import RoundMetrics

#: Seconds that nodes get to say goodbye: what one still computes then is of no use to anybody.
_GOODBYE_SECONDS = 10.0


@dataclass(slots=True)
class _Pending:
    """A message without a reply: its metadata, its round, and when it expires (monotonic seconds)."""

    message: Message
    node: int
    round: int
    expires: float
    wanted: bool = True


class FarshoreGrid(Grid):
    """See ``flwr.serverapp.Grid``; any thread may call it, and any number at once.

    A node that is lost answers what it was sent, and all that is sent to it from then on, with an error
    (``NODE_UNAVAILABLE``) at once; a message that outlives its ttl is answered so too (``REPLY_MESSAGE_UNAVAILABLE``).

    Parameters
    ----------
    session : ServerSession
    run : Run
    encoding : Encoding, optional
        Of float32 arrays on their way to the nodes.
    rounds : int
        How many there will be, for progress; 0 = unknown.
    on_failure : callable
        Gets what ends the run: it was cancelled, or no node is left. Every later call raises it.
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
        self._names = numbered(session.channels)
        self._numbers = {name: number for number, name in self._names.items()}
        self._changed = threading.Condition()
        self._living = dict(self._numbers)
        self._lost: dict[int, str] = {}
        self._pending: dict[str, _Pending] = {}
        self._replies: dict[str, Message] = {}
        self._failure: FarshoreError | None = None
        self._closing = False
        self._tally = RoundMetrics(session, rounds)
        self.sent = self.failures = 0
        self._listener = threading.Thread(target=self._listen, name="flower replies", daemon=True)
        self._listener.start()

    # ---- what apps see -------------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Use another description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message; see ``flwr.app.Message``, which does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Numbers of the nodes that are there, ascending."""
        with self._changed:
            self._check()
            return sorted(self._living.values())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; returns their identities."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have come; each is handed out once."""
        with self._changed:
            self._check()
            self._expire()
            return [self._replies.pop(i) for i in dict.fromkeys(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for all replies, or for ``timeout`` seconds; replies come in the messages' order."""
        end = None if timeout is None else time.monotonic() + timeout
        identities = self.push_messages(messages)
        with self._changed:
            while open_ := [self._pending[i] for i in identities if i in self._pending]:
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
            for pending in open_:  # nobody can ask for these any more
                pending.wanted = False
            return [self._replies.pop(i) for i in identities if i in self._replies]

    # ---- what the server program needs ---------------------------------------------------------------------------

    def close(self) -> None:
        """Tell the nodes that this is all, and wait a little for their goodbyes."""
        with self._changed:
            self._closing = True
            names = list(self._living)
        for name in names:
            try:
                self._session.channels[name].send(Frame("control", fields={"what": "done"}))
            except PeerLostError as error:
                self._lose(name, str(error))
        self._listener.join(_GOODBYE_SECONDS)
        with self._changed:
            self._tally.tell()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _push(self, message: Message) -> str:
        to = message.metadata.dst_node_id
        address(message, run_id=self._run.run_id, src_node_id=SUPERLINK_NODE_ID)
        identity, metadata = message.metadata.message_id, message.metadata
        left = metadata.created_at + metadata.ttl - time.time()
        number, expires = round_of(message), time.monotonic() + left
        pending = _Pending(with_content(message, RecordDict()), to, number, expires)
        with self._changed:
            self._check()
            self.sent += 1
            self._pending[identity] = pending
            if to not in self._names:
                self._fail(identity, ErrorCode.NODE_UNAVAILABLE, f"no node of this run has the number {to}")
            elif to in self._lost:
                self._fail(identity, ErrorCode.NODE_UNAVAILABLE, self._lost[to])
            elif left <= 0:
                self._fail(identity, ErrorCode.MESSAGE_UNAVAILABLE, "the message had expired before it was sent")
            if identity not in self._pending:
                return identity
        try:
            self._session.channels[self._names[to]].send(to_frame(message, number, self._encoding))
        except PeerLostError as error:
            self._lose(self._names[to], str(error))
        return identity

    def _listen(self) -> None:
        """Take replies until every node has said goodbye or is lost."""
        while True:
            with self._changed:
                names = list(self._living)
            if not names:
                return
            try:
                name, frame = self._session.receive_any(names)
            except PeerLostError as error:
                self._lose(error.name, str(error))
            except FarshoreError as error:
                self._stop(error)
                return
            else:
                self._take(name, frame)

    def _take(self, name: str, frame: Frame) -> None:
        if frame.kind == "control":
            with self._changed:
                self._living.pop(name, None)
            return
        try:
            reply = from_frame(frame)
        except WireError as error:
            self._lose(name, f"node {name}: {error}")
            return
        identity, number = reply.metadata.reply_to_message_id, self._numbers[name]
        with self._changed:
            pending = self._pending.get(identity)
            if pending is None or pending.node != number:
                self._session.log(f"{name}: a reply to what is not waited for (any longer) was left out")
                return
            address(reply, run_id=self._run.run_id, src_node_id=number, dst_node_id=SUPERLINK_NODE_ID)
            self._deliver(identity, reply)

    def _deliver(self, identity: str, reply: Message) -> None:
        pending = self._pending.pop(identity)
        self.failures += reply.has_error()
        self._tally.add(reply, pending.round)
        if pending.wanted:
            self._replies[identity] = reply
        self._changed.notify_all()

    def _fail(self, identity: str, code: int, reason: str) -> None:
        pending = self._pending[identity]
        reply = address(failed(pending.message, code, reason), src_node_id=pending.node)
        self._deliver(identity, reply)

    def _expire(self) -> None:
        now = time.monotonic()
        for identity, pending in list(self._pending.items()):
            if pending.expires <= now:
                seconds = pending.message.metadata.ttl
                self._fail(identity, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"no reply within its ttl of {seconds:g} s")

    def _lose(self, name: str, why: str) -> None:
        with self._changed:
            if self._living.pop(name, None) is None:
                return
            if self._closing:
                return
            number = self._numbers[name]
            self._lost[number] = why
            for identity in [i for i, p in self._pending.items() if p.node == number]:
                self._fail(identity, ErrorCode.NODE_UNAVAILABLE, why)
            nobody = not self._living
        self._session.log(f"{name} is lost: {why}")
        if nobody:
            self._stop(RunFailedError(f"no node is left; the last one: {why}"))

    def _stop(self, error: FarshoreError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._on_failure(error)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._session.check_cancelled()
