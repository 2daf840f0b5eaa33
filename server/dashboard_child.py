"""Runs the dashboard as a child process of the server, isolated from it, and restarts it if it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from ..core.errors import ConfigError, FarshoreError, PortInUseError, RefusedError, StorageError
from ..core.processes import Child
from .dashboard.options import DashboardOptions
from .dashboard.serving import check_installed
from .restart_limit import RestartLimit

_log = logging.getLogger(__name__)

_READY_SECONDS, _STOP_SECONDS = 30.0, 3.0
_RESTARTS_PER_HOUR = 10
#: Errors that the child reports by their exit code.
_ERRORS: dict[int, type[FarshoreError]] = {
    int(kind.exit_code): kind for kind in (ConfigError, PortInUseError, RefusedError, StorageError)
}


class DashboardChild:
    """Starts the dashboard process and restarts it if it dies. For one asyncio loop.

    Parameters
    ----------
    options : DashboardOptions
    """

    def __init__(self, options: DashboardOptions) -> None:
        self._options = options
        self._child: Child | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._output_tasks: list[asyncio.Task[None]] = []
        self._restarts: deque[float] = deque()

    async def start(self) -> str:
        """Start the dashboard; returns the URL to open in a browser.

        Raises
        ------
        MissingExtraError
            A required package is not installed.
        PortInUseError, ConfigError, RefusedError, StorageError
            The dashboard cannot listen, its options are invalid, or it cannot read the run store.
        """
        check_installed()
        address = await self._spawn()
        self._supervision = asyncio.create_task(self._supervise(), name="dashboard")
        return address

    async def stop(self) -> None:
        """Stop the dashboard and its supervision."""
        if self._supervision is not None:
            self._supervision.cancel()
        if self._child is not None:
            await self._child.stop(_STOP_SECONDS)
        for task in self._output_tasks:
            task.cancel()

    async def _spawn(self) -> str:
        self._child = child = await Child.start("farshore.server.dashboard.process")
        child.send({"options": self._options.as_dict()})
        self._output_tasks = [asyncio.create_task(_log_output(child), name="dashboard output")]
        try:
            async with asyncio.timeout(_READY_SECONDS):
                async for message in child.messages():
                    if message.get("type") == "ready":
                        return str(message["address"])
                    kind = _ERRORS.get(int(message.get("exit_code", 0)), StorageError)
                    raise kind(f"the dashboard failed to start: {message.get('error', '')}")
        except TimeoutError:
            pass
        child.kill()
        raise StorageError("the dashboard failed to start", hint="run 'farshore dashboard' to see why")

    async def _supervise(self) -> None:
        """Restart the dashboard whenever it exits, up to a number of times per hour."""
        limit = RestartLimit(_RESTARTS_PER_HOUR, time.monotonic)
        while self._child is not None:
            code = await self._child.wait()
            _log.warning("the dashboard exited with code %d", code)
            if not limit.allows(self._restarts):
                _log.error("the dashboard exited more than %d times within an hour; not restarting", _RESTARTS_PER_HOUR)
                return
            await asyncio.sleep(1.0)
            try:
                await self._spawn()
            except FarshoreError as error:
                _log.warning("%s", error)


async def _log_output(child: Child) -> None:
    async for line in child.output():
        _log.warning("dashboard: %s", line)
