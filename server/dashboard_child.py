"""The dashboard beside a server: a child process, so that nothing that happens to it happens to the server."""

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
#: Errors that the child tells by their exit code.
_ERRORS: dict[int, type[FarshoreError]] = {
    int(kind.exit_code): kind for kind in (ConfigError, PortInUseError, RefusedError, StorageError)
}


class DashboardChild:
    """Starts a dashboard, and starts it again should it die; inside one asyncio loop.

    Parameters
    ----------
    options : DashboardOptions
    """

    def __init__(self, options: DashboardOptions) -> None:
        self._options = options
        self._child: Child | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._reading: list[asyncio.Task[None]] = []
        self._restarts: deque[float] = deque()

    async def start(self) -> str:
        """Start it; returns the address to open in a browser.

        Raises
        ------
        MissingExtraError
            A package that it needs is not installed.
        PortInUseError, ConfigError, RefusedError, StorageError
            It cannot listen, or not there, or cannot read the store.
        """
        check_installed()
        address = await self._spawn()
        self._keeping = asyncio.create_task(self._keep(), name="dashboard")
        return address

    async def stop(self) -> None:
        """Stop it."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._child is not None:
            await self._child.stop(_STOP_SECONDS)
        for task in self._reading:
            task.cancel()

    async def _spawn(self) -> str:
        self._child = child = await Child.start("farshore.server.dashboard.process")
        child.send({"options": self._options.as_dict()})
        self._reading = [asyncio.create_task(_log_output(child), name="dashboard output")]
        try:
            async with asyncio.timeout(_READY_SECONDS):
                async for message in child.messages():
                    if message.get("type") == "ready":
                        return str(message["address"])
                    kind = _ERRORS.get(int(message.get("exit_code", 0)), StorageError)
                    raise kind(f"the dashboard does not start: {message.get('error', '')}")
        except TimeoutError:
            pass
        child.kill()
        raise StorageError("the dashboard does not start", hint="try 'farshore dashboard' to see why")

    async def _keep(self) -> None:
        """Start it again whenever it dies, but not for ever."""
        limit = RestartLimit(_RESTARTS_PER_HOUR, time.monotonic)
        while self._child is not None:
            code = await self._child.wait()
            _log.warning("the dashboard ended with exit code %d", code)
            if not limit.allows(self._restarts):
                _log.error("the dashboard ended too often; it stays down")
                return
            await asyncio.sleep(1.0)
            try:
                await self._spawn()
            except FarshoreError as error:
                _log.warning("%s", error)


async def _log_output(child: Child) -> None:
    async for line in child.output():
        _log.warning("dashboard: %s", line)
