"""A server and nodes as child processes for the length of a ``with`` block; each runs a ``farshore`` command."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import RunFailedError

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_LAST_LINES = 15


class ManagedProcess:
    """A child process that runs a ``farshore`` command, with JSON events on standard output and a log file for errors.

    Parameters
    ----------
    name : str
    arguments : sequence of str
        The command line after ``farshore``.
    log : Path
        File for its standard error.
    stdin : str, optional
        Text for its standard input.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, stdin: str = "") -> None:
        self.name = name
        self._log = log
        # -P: the working directory must not shadow the installed package.
        command = [sys.executable, "-P", "-m", "farshore.demo.die_with_parent", str(os.getpid()), *arguments]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C in the terminal must reach the parent only, which then stops its children in order.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(stdin)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def wait_for(self, key: str, value: object = None) -> dict[str, Any]:
        """Wait for the first event that has ``key`` (with ``value``, unless that is None) and return it.

        Raises
        ------
        RunFailedError
            The process ended, or there was no such event within a minute.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RunFailedError(f"{self.name} did not start within {_START_SECONDS:.0f} s{self._tail()}") from None
            if event is None:
                raise RunFailedError(f"{self.name} ended with exit code {self._process.wait()}{self._tail()}")
            if key in event and value in (None, event[key]):
                return event

    def terminate(self) -> None:
        """Send SIGTERM if the process is running."""
        if self._process.poll() is None:
            self._process.terminate()

    def finish(self, deadline: float) -> None:
        """Wait for the process until ``deadline`` (monotonic seconds); then kill its process group."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._events.put(event)
        self._events.put(None)

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return ": " + " | ".join(lines) if lines else ""


class LocalCluster:
    """A server and nodes on loopback with TLS, as child processes that are stopped on exit.

    Parameters
    ----------
    folder : Path
        For homes and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[ManagedProcess] = []
        self._server: dict[str, Any] = {}

    @property
    def server_home(self) -> Path:
        """Home of the server, for :meth:`AdminClient.local`."""
        return self._folder / "server"

    def start_server(self) -> None:
        """Start ``farshore server up`` on a free port and wait until it listens.

        Raises
        ------
        RunFailedError
            The server did not start.
        """
        arguments = ["server", "up", "--json", "--port", "0", "--home", str(self.server_home)]
        self._server = self._start("server", arguments).wait_for("address")

    def start_nodes(self, names: Sequence[str], options: Mapping[str, Sequence[str]] | None = None) -> None:
        """Start one ``farshore node join`` per name and wait until all are connected.

        Parameters
        ----------
        names : sequence of str
        options : Mapping[str, sequence of str], optional
            Additional command-line arguments by node.

        Raises
        ------
        RunFailedError
            A node did not connect.
        """
        nodes = []
        for name in names:
            arguments = ["node", "join", str(self._server["address"]), "--json", "--name", name, "--token", "-"]
            arguments += ["--home", str(self._folder / name), *(options or {}).get(name, ())]
            nodes.append(self._start(name, arguments, stdin=f"{self._server['token']}\n"))
        for node in nodes:
            node.wait_for("state", "connected")

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all processes, in reverse order of their start; takes a few seconds at most."""
        deadline = time.monotonic() + _STOP_SECONDS
        processes, self._processes = self._processes, []
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            process.finish(deadline)

    def _start(self, name: str, arguments: Sequence[str], stdin: str = "") -> ManagedProcess:
        with _deferred_signals():  # an interrupt between start and registration would leak the process
            process = ManagedProcess(name, arguments, self._folder / f"{name}.log", stdin)
            self._processes.append(process)
        return process


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block; unlike a signal mask, children do not inherit this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = {n: signal.signal(n, lambda number, _: received.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for pending in received:
            signal.raise_signal(pending)
