"""The server's own figures for Prometheus, over plain HTTP on a port of their own: nodes, runs, rounds, bytes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from ..core.address import join_address
from ..core.errors import MissingExtraError, PortInUseError
from ..runs.states import ENDED, FOLLOWERS
from .registry import NodeState

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

#: Seconds for which a run that has ended is told of in detail: long enough for the last scrape of it.
_AFTER = 900.0
#: Seconds that a scrape waits for the server's loop.
_PATIENCE = 5.0


class MetricsPort:
    """Listens if the options say so.

    Parameters
    ----------
    orchestrator : Orchestrator

    Attributes
    ----------
    address : str
        URL to scrape, once open; empty where nothing was asked for.
    """

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._serving: tuple[Any, Any] | None = None
        self.address = ""

    def open(self) -> None:
        """Start to listen; to be called in the server's loop.

        Raises
        ------
        MissingExtraError
            prometheus-client is not installed.
        PortInUseError
            Another program listens there.
        """
        options = self._orchestrator.options
        if options.metrics_port is None:
            return
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise MissingExtraError("prometheus-client", "prometheus") from error
        registry = CollectorRegistry()
        registry.register(_Figures(self._orchestrator, asyncio.get_running_loop()))
        target = join_address(options.metrics_host, options.metrics_port)
        try:
            self._serving = start_http_server(options.metrics_port, options.metrics_host, registry)
        except OSError as error:
            raise PortInUseError(
                f"cannot listen for Prometheus on {target}: {error.strerror or error}",
                hint="choose another --metrics-port",
            ) from error
        number = self._serving[0].server_address[1]
        self.address = f"http://{join_address(options.metrics_host, number)}/metrics"

    async def close(self) -> None:
        """Stop to listen."""
        if self._serving is None:
            return
        server, thread = self._serving
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
        self._serving = None


class _Figures:
    """What a scrape gets; the library calls it in a thread of its own."""

    def __init__(self, orchestrator: Orchestrator, loop: asyncio.AbstractEventLoop) -> None:
        self._orchestrator, self._loop = orchestrator, loop

    def describe(self) -> Iterable[Any]:
        """Nothing: names are not looked up before the first scrape."""
        return ()

    def collect(self) -> Iterator[Any]:
        """All figures, read in the server's loop, so that none changes meanwhile."""
        yield from asyncio.run_coroutine_threadsafe(self._collected(), self._loop).result(_PATIENCE)

    async def _collected(self) -> list[Any]:
        return [self._nodes(), self._runs(), *self._details()]

    def _nodes(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        count = Counter(node.state for node in self._orchestrator.registry)
        family = GaugeMetricFamily("farshore_nodes", "Nodes that ever joined, by state", labels=["state"])
        for state in get_args(NodeState):
            family.add_metric([state], count[state])
        return family

    def _runs(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        count = Counter(run.state for run in self._orchestrator.book)
        family = GaugeMetricFamily("farshore_runs", "Runs, by state", labels=["state"])
        for state in FOLLOWERS:
            family.add_metric([state], count[state])  # type: ignore[index]
        return family

    def _details(self) -> list[Any]:
        """Of runs that go on or have just ended: of all that ever were, there would be more and more series."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        names = ["run", "method", "unit"]
        done = GaugeMetricFamily("farshore_run_done", "Rounds or steps done", labels=names)
        total = GaugeMetricFamily("farshore_run_total", "Rounds or steps in all", labels=names)
        clients = GaugeMetricFamily("farshore_run_clients", "Clients of the last round", labels=["run", "outcome"])
        sent = CounterMetricFamily(
            "farshore_run_frame_bytes",
            "Bytes of frames since the run's programs began",
            labels=["run", "method", "direction", "kind"],
        )
        for run in self._orchestrator.book:
            if run.state in ENDED and time.time() - run.ended > _AFTER:
                continue
            told = [run.id, run.workload, str(run.progress.get("unit", "step"))]
            done.add_metric(told, run.done)
            total.add_metric(told, run.total)
            for outcome in ("ok", "late", "failed"):
                if outcome in run.progress:
                    clients.add_metric([run.id, outcome], run.progress[outcome])
            for direction, kinds in run.progress.get("kinds", {}).items():
                for kind, size in kinds.items():
                    sent.add_metric([run.id, run.workload, direction, kind], size)
        return [done, total, clients, sent]
