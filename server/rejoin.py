"""Nodes that come back to a run under way: greeted aside, and taken up where the server program is between rounds."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping

from ..core.errors import FarshoreError, PeerLostError, RunFailedError
from ..core.handshake import begin, own_step, read_hello
from ..core.processes import Parent
from ..wire.channel import Channel


class Rejoin:
    """Conversations of one run process: those that the server program has, and those that wait for it.

    Parameters
    ----------
    channels : MutableMapping[str, Channel]
        The conversations as the server program sees them, in cohort order.
    parent : Parent
    newest : callable
        The step of the server's newest checkpoint, or None.
    torch : bool
        Whether both ends must have the same torch.
    """

    def __init__(
        self, channels: MutableMapping[str, Channel], parent: Parent, newest: Callable[[], int | None], *, torch: bool
    ) -> None:
        self._channels, self._parent, self._newest, self._torch = channels, parent, newest, torch
        self._changed = threading.Condition()
        self._greeting: dict[str, Channel] = {}
        self._ready: dict[str, Channel] = {}
        #: Node -> why it cannot come back.
        self._for_good: dict[str, str] = {}
        self._threads: list[threading.Thread] = []
        self._error: Exception | None = None

    def expect(self, node: str, channel: Channel) -> None:
        """A new program of ``node`` will talk over ``channel``."""
        with self._changed:
            self._greeting[node] = channel
            thread = threading.Thread(target=self._greet, args=(node, channel), name=f"return of {node}", daemon=True)
            self._threads.append(thread)
        thread.start()

    def lost(self, node: str, reason: str, *, for_good: bool) -> None:
        """The program of ``node`` has ended, or the node is gone."""
        error = PeerLostError(reason)
        with self._changed:
            if for_good:
                self._for_good[node] = reason
            waiting = [c for c in (self._greeting.pop(node, None), self._ready.pop(node, None)) if c is not None]
            for channel in waiting or [self._channels[node]]:
                channel.fail(error)
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """End all conversations with ``error``."""
        with self._changed:
            self._error = error
            for channel in (*self._channels.values(), *self._greeting.values(), *self._ready.values()):
                channel.fail(error)
            self._changed.notify_all()

    def readmit(self, least: int) -> list[str]:
        """Put the conversations that are ready into ``channels``, once there are ``least``; see the session's."""
        back: list[str] = []
        with self._changed:
            told = False
            while True:
                back += self._ready
                self._channels.update(self._ready)
                self._ready.clear()
                if self._error is not None:
                    raise self._error
                lost = {n: str(c.inbox.error) for n, c in self._channels.items() if c.stopped}
                there = len(self._channels) - len(lost)
                if there >= least:
                    break
                self._check_hope(least)
                told = True
                why = "; ".join(lost.values())
                self._parent.send({"type": "waiting", "reason": f"waiting for {least - there} of {least} nodes: {why}"})
                self._changed.wait()
        if told:
            self._parent.send({"type": "running"})
        return back

    def close(self) -> None:
        """Turn away whoever waits, at the end of the run."""
        with self._changed:
            waiting = [*self._greeting.values(), *self._ready.values()]
        for channel in waiting:
            channel.close(0.0, "the run has ended")
        for thread in self._threads:
            thread.join()

    def _check_hope(self, least: int) -> None:
        left = len(self._channels) - len(self._for_good)
        if left < least:
            why = "; ".join(self._for_good.values())
            raise RunFailedError(f"{left} of {len(self._channels)} nodes are left where a round needs {least}: {why}")

    def _greet(self, node: str, channel: Channel) -> None:
        """Agree with a node's new program on where it begins."""
        try:
            steps = read_hello(channel.receive(), node, torch=self._torch)
            step = own_step(steps, self._newest())
            channel.send(begin(step))
        except PeerLostError:
            return
        except FarshoreError as error:
            channel.close(0.0, str(error))
            self._parent.send({"type": "unfit", "node": node, "reason": str(error)})
            return
        words = "with nothing to remember" if step is None else f"with what it kept of step {step}"
        self._parent.send({"type": "log", "line": f"{node} is back, {words}"})
        with self._changed:
            if self._greeting.pop(node, None) is channel:
                self._ready[node] = channel
            self._changed.notify_all()
