"""Requests to several nodes: answers in order of arrival; distinguishes lost, faulty, late, silent and full nodes.

For engines whose server program asks nodes and goes on without those that do not answer. A node has at most one
outstanding request; what it answers to an earlier one is marked as such.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..core.errors import PeerLostError, WireError
from ..core.message import Message
from ..core.session import ServerSession

#: Returns the seconds until a deadline; None = there is none.
Remaining: TypeAlias = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A message from a node.

    Attributes
    ----------
    request : int or None
        Number of the request that was outstanding when it came; None if there was none.
    final : bool
        Whether it answers that request, which is then closed; False if it answers an earlier one.
    """

    node: str
    message: Message
    request: int | None = None
    final: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a conversation with a node.

    Attributes
    ----------
    kind : {"lost", "faulty"}
        ``lost``: its program or machine is gone. ``faulty``: it broke the wire format and was dismissed.
    """

    node: str
    kind: Literal["lost", "faulty"]
    reason: str


def receive(session: ServerSession, nodes: Sequence[str], timeout: float | None = None) -> Answer | Failure | None:
    """The next message of any of ``nodes``, or the failure of one; None after ``timeout`` seconds.

    A node that breaks the wire format is dismissed.
    """
    try:
        return Answer(*session.receive_any(nodes, timeout))
    except PeerLostError as error:
        return Failure(error.name, "lost", str(error))
    except WireError as error:
        return refuse(session, error.name, error)
    except TimeoutError:
        return None


def refuse(session: ServerSession, node: str, error: WireError) -> Failure:
    """Dismiss a node that sent an invalid message."""
    session.dismiss(node, str(error))
    return Failure(node, "faulty", f"wire format error: {error}")


def send(session: ServerSession, node: str, message: Message, timeout: float | None = None) -> Failure | None:
    """Send a message; returns the failure of a node that is lost.

    Raises
    ------
    TimeoutError
        The node does not take earlier messages within ``timeout`` seconds; nothing was queued.
    """
    try:
        session.channels[node].send(message, timeout)
    except PeerLostError as error:
        return Failure(node, "lost", str(error))
    return None


def deadline(seconds: float) -> Remaining:
    """Start a deadline now; 0 = none. The result returns the remaining seconds, or None without a deadline."""
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic()) if seconds else None


class Requests:
    """The outstanding requests of a server program; a request's number is its message's ``round``.

    Parameters
    ----------
    session : ServerSession
    """

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._pending: dict[str, int] = {}

    @property
    def pending(self) -> Mapping[str, int]:
        """Number of the outstanding request of each node that has one."""
        return self._pending

    def ask(self, node: str, message: Message, timeout: float | None = None) -> Failure | None:
        """Send a request, which replaces an outstanding one of the node; returns the failure of a lost node.

        Raises
        ------
        TimeoutError
            The node does not take earlier messages in time; nothing was sent, and its outstanding request stays.
        """
        failure = send(self._session, node, message, timeout)
        if failure is None:
            self._pending[node] = message.round
        else:
            self.forget(node)
        return failure

    def next(self, nodes: Collection[str], timeout: float | None = None) -> Answer | Failure | None:
        """The next answer or failure of any of ``nodes``; None after ``timeout`` seconds.

        An answer to the outstanding request closes it, and so does a failure.
        """
        outcome = receive(self._session, list(nodes), timeout)
        if outcome is None:
            return None
        request = self._pending.get(outcome.node)
        if isinstance(outcome, Failure):
            self.forget(outcome.node)
            return outcome
        final = request is None or outcome.message.round >= request
        if final:
            self.forget(outcome.node)
        return Answer(outcome.node, outcome.message, request, final)

    def forget(self, node: str) -> None:
        """Close the outstanding request of a node, if there is one: nothing is expected from it any more."""
        self._pending.pop(node, None)
