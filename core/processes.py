"""Supervised child processes: spawned, in a process group of their own, and dead as soon as their parent is.

Parent and child talk in lines of JSON over a socket pair. The pair is also how each notices the other's end; on Linux
the kernel's parent-death signal does so even while the child computes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from .errors import ExitCode, FarshoreError, WireError

Json: TypeAlias = dict[str, Any]

_VARIABLE = "FARSHORE_PARENT"
_LINE_LIMIT = 64 << 20
_OUTPUT_LINE = 16 << 10


class Child:
    """The parent's view of a child process; use inside one asyncio loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, module: str, *, environment: Mapping[str, str] | None = None) -> Child:
        """Spawn ``python -m module``; it finds its parent through :class:`Parent`."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **(environment or {}), _VARIABLE: f"{theirs.fileno()}:{os.getpid()}"},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.returncode

    def send(self, message: Json) -> None:
        """Queue one message; a child that is gone does not get it."""
        if not self._writer.is_closing():
            self._writer.write(_line(message))

    async def messages(self) -> AsyncIterator[Json]:
        """What the child says, until it closes its end."""
        while True:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            yield _parse(line)

    async def output(self) -> AsyncIterator[str]:
        """Lines of its standard output and error; an over-long line comes in pieces."""
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")
            while len(rest) > _OUTPUT_LINE:
                yield rest[:_OUTPUT_LINE].decode(errors="replace")
                rest = rest[_OUTPUT_LINE:]
        if rest:
            yield rest.decode(errors="replace")

    async def wait(self) -> int:
        """Wait for its end; returns the exit code. Grandchildren that outlived it are killed."""
        code = await self._process.wait()
        self._kill_group(signal.SIGKILL)
        self._writer.close()
        return code

    async def stop(self, grace: float, *, first: signal.Signals | None = signal.SIGTERM) -> int:
        """End it: ``first`` (None = it was asked by message), and SIGKILL after ``grace`` seconds."""
        if first is not None and self.exit_code is None:
            self._kill_group(first)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self._kill_group(signal.SIGKILL)
            return await self.wait()

    def kill(self) -> None:
        """Kill it and everything it started, if it is still there."""
        if self.exit_code is None:
            self._kill_group(signal.SIGKILL)

    def _kill_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Parent:
    """The child's view of its parent."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def find(cls) -> Parent:
        """Take up the connection this process was spawned with, and tie this process's life to the parent's.

        Raises
        ------
        WireError
            This process was not spawned by :meth:`Child.start`.
        """
        try:
            descriptor, pid = (int(part) for part in os.environ.pop(_VARIABLE).split(":"))
            connection = socket.socket(fileno=descriptor)
        except (KeyError, ValueError, OSError) as error:
            raise WireError("this program is started by farshore itself", hint="see 'farshore --help'") from error
        os.set_inheritable(descriptor, False)
        _die_with_parent(pid)
        return cls(connection)

    def first(self) -> Json:
        """The first message; blocks."""
        line = self._file.readline(_LINE_LIMIT)
        if not line.endswith(b"\n"):
            _die()
        return _parse(line)

    def listen(self, on_message: Callable[[Json], None], on_gone: Callable[[], None] | None = None) -> None:
        """Hand every further message to ``on_message`` in a thread; when the parent is gone, ``on_gone`` and die."""
        self._thread = threading.Thread(target=self._listen, args=(on_message, on_gone), name="parent", daemon=True)
        self._thread.start()

    def _listen(self, on_message: Callable[[Json], None], on_gone: Callable[[], None] | None) -> None:
        while True:
            try:
                line = self._file.readline(_LINE_LIMIT)
            except OSError:
                line = b""
            if not line.endswith(b"\n"):
                break
            on_message(_parse(line))
        try:
            if on_gone is not None:
                on_gone()
        finally:
            _die()

    def send(self, message: Json) -> None:
        """Send one message; from any thread."""
        with self._lock, suppress(OSError):
            self._socket.sendall(_line(message))

    def failed(self, error: Exception) -> ExitCode:
        """Tell what the program died of, in one line; only a surprise comes with a traceback. Returns the exit code."""
        text = " ".join(str(error).split())
        if isinstance(error, FarshoreError):
            code, trace = error.exit_code, ""
        else:
            code, trace = ExitCode.RUN_FAILED, "".join(traceback.format_exception(error))
            text = f"{type(error).__name__}: {text}".rstrip(": ") + place_of(error)
        self.send({"type": "failed", "exit_code": int(code), "error": text, "traceback": trace})
        return code


def place_of(error: BaseException) -> str:
    """Where in a user's code it was raised, in brackets: the innermost frame outside this package and what it uses."""
    ours = (Path(__file__).resolve().parents[1], Path(traceback.__file__).resolve().parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.is_file() and "site-packages" not in path.parts and not any(path.is_relative_to(o) for o in ours):
            return f" ({path.name}, line {frame.lineno}, in {frame.name})"
    return ""


def _line(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Json:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WireError(f"a line between parent and child is not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"a line between parent and child is not an object: {line[:80]!r}")
    return message


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        _die()


def _die() -> None:
    """End this process and everything it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
