"""Nodes that rejoin a run in progress: their handshake in the background, their channels at the next ``readmit``."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping

from ..core.errors import FarshoreError, PeerLostError, RunFailedError
from ..core.handshake import begin, own_step, read_hello
from ..core.processes import Parent
from ..wire.channel import Channel


class Rejoin:
    """The channels of restarted node programs, held back until the server program calls :meth:`readmit`.

    Parameters
    ----------
    channels : MutableMapping[str, Channel]
        The channels that the server program uses, in cohort order; :meth:`readmit` replaces entries.
    parent : Parent
        The supervisor.
    newest_step : callable
        Returns the step of the server's newest checkpoint, or None.
    torch : bool
        Whether both sides must have the same torch version.
    """

    def __init__(
        self,
        channels: MutableMapping[str, Channel],
        parent: Parent,
        newest_step: Callable[[], int | None],
        *,
        torch: bool,
    ) -> None:
        self._channels, self._parent, self._newest_step, self._torch = channels, parent, newest_step, torch
        self._condition = threading.Condition()
        self._handshaking: dict[str, Channel] = {}
        self._ready: dict[str, Channel] = {}
        #: Nodes that cannot rejoin, with the reason.
        self._excluded: dict[str, str] = {}
        self._threads: list[threading.Thread] = []
        self._error: Exception | None = None

    def expect(self, node: str, channel: Channel) -> None:
        """Start the handshake with the restarted program of ``node`` over ``channel``, in a thread."""
        with self._condition:
            self._handshaking[node] = channel
            thread = threading.Thread(target=self._handshake, args=(node, channel), name=f"rejoin {node}", daemon=True)
            self._threads.append(thread)
        thread.start()

    def node_lost(self, node: str, reason: str, *, permanent: bool) -> None:
        """Fail the channel of ``node``, whose program has ended or whose machine is unreachable.

        Parameters
        ----------
        node : str
        reason : str
        permanent : bool
            Whether the node cannot rejoin.
        """
        error = PeerLostError(reason)
        with self._condition:
            if permanent:
                self._excluded[node] = reason
            pending = [c for c in (self._handshaking.pop(node, None), self._ready.pop(node, None)) if c is not None]
            for channel in pending or [self._channels[node]]:
                channel.fail(error)
            self._condition.notify_all()

    def fail(self, error: Exception) -> None:
        """Fail all channels with ``error``."""
        with self._condition:
            self._error = error
            for channel in (*self._channels.values(), *self._handshaking.values(), *self._ready.values()):
                channel.fail(error)
            self._condition.notify_all()

    def readmit(self, minimum: int) -> list[str]:
        """Put the ready channels into ``channels``; block until at least ``minimum`` nodes are connected.

        Returns
        -------
        list of str
            The nodes that have rejoined.

        Raises
        ------
        RunFailedError
            So many nodes are excluded that ``minimum`` cannot be reached.
        """
        rejoined: list[str] = []
        with self._condition:
            waited = False
            while True:
                rejoined += self._ready
                self._channels.update(self._ready)
                self._ready.clear()
                if self._error is not None:
                    raise self._error
                lost = {n: str(c.inbox.error) for n, c in self._channels.items() if c.stopped}
                connected = len(self._channels) - len(lost)
                if connected >= minimum:
                    break
                self._check_reachable(minimum)
                waited = True
                reason = f"waiting for {minimum - connected} of {minimum} nodes: {'; '.join(lost.values())}"
                self._parent.send({"type": "waiting", "reason": reason})
                self._condition.wait()
        if waited:
            self._parent.send({"type": "running"})
        return rejoined

    def close(self) -> None:
        """Close the channels of nodes that have not been readmitted, at the end of the run."""
        with self._condition:
            pending = [*self._handshaking.values(), *self._ready.values()]
        for channel in pending:
            channel.close(0.0, "the run has ended")
        for thread in self._threads:
            thread.join()

    def _check_reachable(self, minimum: int) -> None:
        left = len(self._channels) - len(self._excluded)
        if left < minimum:
            why = "; ".join(self._excluded.values())
            raise RunFailedError(
                f"a round needs {minimum} nodes, but only {left} of {len(self._channels)} can still take part: {why}"
            )

    def _handshake(self, node: str, channel: Channel) -> None:
        """Agree with the restarted program of ``node`` on the step to resume from."""
        try:
            steps = read_hello(channel.receive(), node, torch=self._torch)
            step = own_step(steps, self._newest_step())
            channel.send(begin(step))
        except PeerLostError:
            return
        except FarshoreError as error:
            channel.close(0.0, str(error))
            self._parent.send({"type": "unfit", "node": node, "reason": str(error)})
            return
        origin = "without a checkpoint" if step is None else f"with its checkpoint of step {step}"
        self._parent.send({"type": "log", "line": f"{node} rejoined {origin}"})
        with self._condition:
            if self._handshaking.pop(node, None) is channel:
                self._ready[node] = channel
            self._condition.notify_all()
