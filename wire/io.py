"""The I/O thread of a program: runs an asyncio loop, so that programs can be written as blocking code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .allocator import keep_freed_memory

T = TypeVar("T")


class IoThread:
    """A thread with an asyncio loop.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`.
    """

    def __init__(self, name: str = "farshore-io") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def start(self) -> IoThread:
        """Start the thread; also configures the allocator, see :func:`~farshore.wire.allocator.keep_freed_memory`."""
        keep_freed_memory()
        self._thread.start()
        return self

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Schedule a coroutine in the loop. Thread-safe."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and return its result. Do not call it from the loop's own thread."""
        return self.submit(work).result(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel all tasks and join the thread; idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout)

    def __enter__(self) -> IoThread:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()
