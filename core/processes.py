"""Child processes in process groups of their own, which exchange JSON messages with their parent and die with it.

Messages are lines of JSON over a socket pair. The stream ends when the process at either side does. On Linux,
the parent-death signal of the kernel also ends a child that does not read its messages.
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
    """A child process, as seen by its parent; use inside one asyncio loop."""

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
        """Spawn ``python -m module``, which connects to this process with :meth:`Parent.connect`.

        Parameters
        ----------
        module : str
            Dotted module name.
        environment : Mapping[str, str], optional
            Variables to add to those of this process.
        """
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
        """None while the process runs; negative if it was killed by a signal."""
        return self._process.returncode

    def send(self, message: Json) -> None:
        """Queue a message; it is dropped if the child has ended."""
        if not self._writer.is_closing():
            self._writer.write(_line(message))

    async def messages(self) -> AsyncIterator[Json]:
        """Yield the messages of the child until it closes its end."""
        while True:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            yield _parse(line)

    async def output(self) -> AsyncIterator[str]:
        """Yield the lines of standard output and error; lines over 16 KiB are split."""
        async for lines in self.output_lines():
            for line in lines:
                yield line

    async def output_lines(self) -> AsyncIterator[list[str]]:
        """Yield what :meth:`output` does in batches, as it arrives; other tasks run between two batches."""
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(1 << 16):
            *parts, rest = (rest + chunk).split(b"\n")
            lines = [part.decode(errors="replace").rstrip("\r") for part in parts]
            while len(rest) > _OUTPUT_LINE:
                lines.append(rest[:_OUTPUT_LINE].decode(errors="replace"))
                rest = rest[_OUTPUT_LINE:]
            yield lines
            await asyncio.sleep(0)
        if rest:
            yield [rest.decode(errors="replace")]

    async def wait(self) -> int:
        """Wait for the process to end and return its exit code. Kills descendants that are still running."""
        code = await self._process.wait()
        self._kill_group(signal.SIGKILL)
        self._writer.close()
        return code

    async def stop(self, grace: float, *, first: signal.Signals | None = signal.SIGTERM) -> int:
        """Terminate the process and return its exit code.

        Parameters
        ----------
        grace : float
            Seconds until SIGKILL.
        first : signal, optional
            Sent at once; None = the child was asked to end by a message.
        """
        if first is not None and self.exit_code is None:
            self._kill_group(first)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self._kill_group(signal.SIGKILL)
            return await self.wait()

    def kill(self) -> None:
        """Kill the process and its descendants if it is still running."""
        if self.exit_code is None:
            self._kill_group(signal.SIGKILL)

    def _kill_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Parent:
    """The parent process, as seen by its child."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def connect(cls) -> Parent:
        """Open the connection to the process that spawned this one; from now on this process dies with it.

        Raises
        ------
        WireError
            This process was not spawned by :meth:`Child.start`.
        """
        try:
            descriptor, pid = (int(part) for part in os.environ.pop(_VARIABLE).split(":"))
            connection = socket.socket(fileno=descriptor)
        except (KeyError, ValueError, OSError) as error:
            raise WireError("this program can only be started by farshore", hint="see 'farshore --help'") from error
        os.set_inheritable(descriptor, False)
        _die_with_parent(pid)
        return cls(connection)

    def receive_first(self) -> Json:
        """Return the first message; blocks."""
        line = self._file.readline(_LINE_LIMIT)
        if not line.endswith(b"\n"):
            _die()
        return _parse(line)

    def listen(self, on_message: Callable[[Json], None], on_gone: Callable[[], None] | None = None) -> None:
        """Receive all further messages in a thread; kill this process when the parent ends.

        Parameters
        ----------
        on_message : callable
            Called with each message.
        on_gone : callable, optional
            Called once when the parent has ended, before this process is killed.
        """
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
        """Send a message. Thread-safe."""
        with self._lock, suppress(OSError):
            self._socket.sendall(_line(message))

    def report_failure(self, error: Exception) -> ExitCode:
        """Report the error that ended the program, as one line, and return the exit code.

        Errors other than :class:`FarshoreError` are sent with their traceback.
        """
        text = " ".join(str(error).split())
        if isinstance(error, FarshoreError):
            code, trace = error.exit_code, ""
        else:
            code, trace = ExitCode.RUN_FAILED, "".join(traceback.format_exception(error))
            text = f"{type(error).__name__}: {text}".rstrip(": ") + user_code_location(error)
        self.send({"type": "failed", "exit_code": int(code), "error": text, "traceback": trace})
        return code


def user_code_location(error: BaseException) -> str:
    """Return the innermost traceback frame in user code: outside farshore, site-packages and the standard library.

    Returns
    -------
    str
        E.g. `` (my_method.py, line 4, in local_update)``; empty if there is no such frame.
    """
    excluded = (Path(__file__).resolve().parents[1], Path(traceback.__file__).resolve().parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.is_file() and "site-packages" not in path.parts and not any(path.is_relative_to(e) for e in excluded):
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
    if os.getppid() != parent:  # the parent ended before the signal was set
        _die()


def _die() -> None:
    """Kill this process and its descendants."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
