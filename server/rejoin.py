"""Handshakes with programs that are started during a run: of nodes that return, and of nodes that join."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..core.errors import FarshoreError, PeerLostError
from ..core.handshake import begin, newest_own_step, read_hello
from ..core.nodes import NodeInfo
from ..core.processes import Parent
from ..wire.channel import Channel
from ..wire.cohort import Cohort


class Rejoin:
    """Greets new node programs in threads, and offers their channels to the cohort.

    Parameters
    ----------
    cohort : Cohort
    parent : Parent
        The supervisor.
    newest_step : callable
        Returns the step of the server's newest checkpoint, or None.
    torch : bool
        Whether both sides must have the same torch version.
    """

    def __init__(self, cohort: Cohort, parent: Parent, newest_step: Callable[[], int | None], *, torch: bool) -> None:
        self._cohort, self._parent, self._newest_step, self._torch = cohort, parent, newest_step, torch
        self._lock = threading.Lock()
        self._handshaking: dict[str, Channel] = {}
        self._threads: list[threading.Thread] = []

    def expect(self, node: str, channel: Channel, info: NodeInfo) -> None:
        """Start the handshake with the new program of ``node`` over ``channel``, in a thread."""
        name = f"rejoin {node}"
        thread = threading.Thread(target=self._handshake, args=(node, channel, info), name=name, daemon=True)
        with self._lock:
            self._handshaking[node] = channel
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
        with self._lock:
            handshaking = self._handshaking.pop(node, None)
            if handshaking is not None:
                handshaking.fail(error)
            elif not self._cohort.withdraw(node, error) and node in self._cohort.channels:
                self._cohort.channels[node].fail(error)
        if permanent:
            self._cohort.exclude(node, reason)

    def fail(self, error: Exception) -> None:
        """Fail all channels with ``error``."""
        with self._lock:
            for channel in self._handshaking.values():
                channel.fail(error)
        self._cohort.fail(error)

    def close(self) -> None:
        """Close the channels that the server program has not used, at the end of the run."""
        with self._lock:
            pending = list(self._handshaking.values())
        for channel in (*pending, *self._cohort.waiting()):
            channel.close(0.0, "the run has ended")
        for thread in self._threads:
            thread.join()

    def _handshake(self, node: str, channel: Channel, info: NodeInfo) -> None:
        """Agree with the new program of ``node`` on the step to resume from."""
        try:
            steps = read_hello(channel.receive(), node, torch=self._torch)
            step = newest_own_step(steps, self._newest_step())
            channel.send(begin(step))
        except PeerLostError:
            return
        except FarshoreError as error:
            channel.close(0.0, str(error))
            self._parent.send({"type": "unfit", "node": node, "reason": str(error)})
            return
        origin = "without a checkpoint" if step is None else f"with its checkpoint of step {step}"
        verb = "rejoined" if node in self._cohort.channels else "joined"
        self._parent.send({"type": "log", "line": f"{node} {verb} {origin}"})
        with self._lock:  # in one step: a loss in between would find the channel neither here nor in the cohort
            if self._handshaking.get(node) is channel:
                del self._handshaking[node]
                self._cohort.offer(node, channel, info)
