"""The thread in which a program's input and output happens; programs themselves are plain blocking code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .allocator import keep_freed_memory

T = TypeVar("T")


class IoThread:
    """A named thread with an asyncio loop.

    Use as a context manager, or :meth:`start` and :meth:`stop` it.
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
        """Start the thread. A process that moves messages also keeps their memory, see ``wire/allocator.py``."""
        keep_freed_memory()
        self._thread.start()
        return self

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop; from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and wait for its result; must not be called from the loop's own thread."""
        return self.submit(work).result(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel what still runs and join the thread; idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout)

    def __enter__(self) -> IoThread:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()
