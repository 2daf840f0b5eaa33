"""Processes that live as long as a ``with`` block: each a ``farshore`` command as a user would type it."""

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
    """One process: what it says on standard output as JSON events, its standard error in a log file.

    Parameters
    ----------
    name : str
    arguments : sequence of str
        The command line after ``farshore``.
    log : Path
        Where its standard error goes.
    stdin : str, optional
        What it reads from standard input.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, stdin: str = "") -> None:
        self.name = name
        self._log = log
        # -P: the folder somebody stands in must not shadow the installed package.
        command = [sys.executable, "-P", "-m", "farshore.demo.die_with_parent", str(os.getpid()), *arguments]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C in the terminal is for the demonstration; it stops its members itself, in order.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(stdin)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def wait_for(self, key: str, value: object = None) -> dict[str, Any]:
        """The first event that has ``key`` (with ``value``, unless that is None).

        Raises
        ------
        RunFailedError
            The process ended, or said nothing of the kind within a minute.
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
        """Ask it to stop."""
        if self._process.poll() is None:
            self._process.terminate()

    def finish(self, deadline: float) -> None:
        """Wait for its end until ``deadline`` (monotonic seconds); then kill it, and whatever it left behind."""
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
    """A server and nodes on loopback, with TLS, in one folder. On leaving, all of them are gone.

    Parameters
    ----------
    folder : Path
        For their homes and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: list[ManagedProcess] = []
        self._told: dict[str, Any] = {}

    @property
    def server_home(self) -> Path:
        """Home of the server; submitters connect with it."""
        return self._folder / "server"

    def start_server(self) -> None:
        """Start ``farshore server up`` on a free port and wait until it listens.

        Raises
        ------
        RunFailedError
            It did not start.
        """
        line = ["server", "up", "--json", "--port", "0", "--home", str(self.server_home)]
        self._told = self._start("server", line).wait_for("address")

    def start_nodes(self, names: Sequence[str], options: Mapping[str, Sequence[str]] | None = None) -> None:
        """Start one ``farshore node join`` per name and wait until all are connected.

        Parameters
        ----------
        names : sequence of str
        options : Mapping[str, sequence of str], optional
            More of the command line, by node.

        Raises
        ------
        RunFailedError
            One did not.
        """
        nodes = []
        for name in names:
            line = ["node", "join", str(self._told["address"]), "--json", "--name", name, "--token", "-"]
            line += ["--home", str(self._folder / name), *(options or {}).get(name, ())]
            nodes.append(self._start(name, line, stdin=f"{self._told['token']}\n"))
        for node in nodes:
            node.wait_for("state", "connected")

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop everybody; done within a few seconds, whatever state they are in."""
        deadline = time.monotonic() + _STOP_SECONDS
        members, self._members = self._members, []
        for member in reversed(members):
            member.terminate()
        for member in reversed(members):
            member.finish(deadline)

    def _start(self, name: str, arguments: Sequence[str], stdin: str = "") -> ManagedProcess:
        with _uninterrupted():  # else there might be a process that nobody knows of
            member = ManagedProcess(name, arguments, self._folder / f"{name}.log", stdin)
            self._members.append(member)
        return member


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block; unlike blocked signals, children do not inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for found in came:
            signal.raise_signal(found)
