"""Prometheus endpoint of the server, over plain HTTP: nodes, runs, progress and bytes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from ..core.address import join_address
from ..core.errors import MissingExtraError, PortInUseError
from ..runs.states import ENDED, TRANSITIONS
from .registry import NodeState

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

#: Seconds for which an ended run is still reported in detail, so that its final values are scraped.
_ENDED_RUN_SECONDS = 900.0
#: Seconds that a scrape waits for the server's event loop.
_SCRAPE_SECONDS = 5.0


class MetricsPort:
    """Serves metrics to Prometheus if ``metrics_port`` is set.

    Parameters
    ----------
    orchestrator : Orchestrator

    Attributes
    ----------
    address : str
        URL to scrape, once open; empty if ``metrics_port`` is None.
    """

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._serving: tuple[Any, Any] | None = None
        self.address = ""

    def open(self) -> None:
        """Start listening; call in the server's event loop.

        Raises
        ------
        MissingExtraError
            prometheus-client is not installed.
        PortInUseError
            Another program listens on the port.
        """
        options = self._orchestrator.options
        if options.metrics_port is None:
            return
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise MissingExtraError("prometheus-client", "prometheus") from error
        registry = CollectorRegistry()
        registry.register(_Collector(self._orchestrator, asyncio.get_running_loop()))
        target = join_address(options.metrics_host, options.metrics_port)
        try:
            self._serving = start_http_server(options.metrics_port, options.metrics_host, registry)
        except OSError as error:
            raise PortInUseError(
                f"cannot listen for Prometheus on {target}: {error.strerror or error}",
                hint="choose another --metrics-port",
            ) from error
        port = self._serving[0].server_address[1]
        self.address = f"http://{join_address(options.metrics_host, port)}/metrics"

    async def close(self) -> None:
        """Stop listening."""
        if self._serving is None:
            return
        server, thread = self._serving
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
        self._serving = None


class _Collector:
    """The prometheus_client collector; the library calls it in a thread of its own."""

    def __init__(self, orchestrator: Orchestrator, loop: asyncio.AbstractEventLoop) -> None:
        self._orchestrator, self._loop = orchestrator, loop

    def describe(self) -> Iterable[Any]:
        """Return nothing: metric names are not needed before the first scrape."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield all metrics; read in the server's event loop for a consistent snapshot."""
        yield from asyncio.run_coroutine_threadsafe(self._collect(), self._loop).result(_SCRAPE_SECONDS)

    async def _collect(self) -> list[Any]:
        return [self._nodes(), self._runs(), *self._details()]

    def _nodes(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        count = Counter(node.visible_state for node in self._orchestrator.registry)
        family = GaugeMetricFamily("farshore_nodes", "Nodes that ever joined, by state", labels=["state"])
        for state in (*get_args(NodeState), "contested"):
            family.add_metric([state], count[state])
        return family

    def _runs(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        count = Counter(run.state for run in self._orchestrator.runs)
        family = GaugeMetricFamily("farshore_runs", "Runs, by state", labels=["state"])
        for state in TRANSITIONS:
            family.add_metric([state], count[state])  # type: ignore[index]
        return family

    def _details(self) -> list[Any]:
        """Metrics per run, only of active and recently ended runs: the number of series must not grow without bound."""
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
        for run in self._orchestrator.runs:
            if run.state in ENDED and time.time() - run.ended > _ENDED_RUN_SECONDS:
                continue
            labels = [run.id, run.workload, str(run.progress.get("unit", "step"))]
            done.add_metric(labels, run.done)
            total.add_metric(labels, run.total)
            for outcome in ("ok", "late", "failed"):
                if outcome in run.progress:
                    clients.add_metric([run.id, outcome], run.progress[outcome])
            for direction, kinds in run.progress.get("kinds", {}).items():
                for kind, size in kinds.items():
                    sent.add_metric([run.id, run.workload, direction, kind], size)
        return [done, total, clients, sent]
