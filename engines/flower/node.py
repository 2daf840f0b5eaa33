"""A node's side: it hosts a ClientApp, hands it one message after another, and keeps its context on disk."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path

from google.protobuf.message import DecodeError

from ...core.errors import StorageError, WireError
from ...core.files import write_file
from ...core.message import Message as Frame
from ...core.session import NodeSession
from ...wire.encodings import parse
from .archive import unpack_app
from .arrays import from_frame, to_frame
from .compat import (
    ClientApp,
    Context,
    ErrorCode,
    Message,
    address,
    context_bytes,
    context_from,
    failed,
    load_client_app,
    log_through_ours,
    make_context,
)
from .config import FlowerRun
from .numbers import number_of
from .project import Project

#: Simulated nodes share a process, and apps its global generators: one of them computes at a time.
_COMPUTING = threading.Lock()


class Host:
    """The node program of a Flower app.

    Parameters
    ----------
    session : NodeSession
    settings : FlowerRun

    Raises
    ------
    RefusedError
        This node does not accept the app, or the archive is not what it should be.
    """

    def __init__(self, session: NodeSession, settings: FlowerRun) -> None:
        session.admit(settings.code)
        log_through_ours()
        self._session, self._encoding = session, parse(settings.up_encoding)
        home = session.run.directory / "flower"
        self._folder = unpack_app(settings.archive, settings.digest, home / f"app-{settings.digest[:16]}")
        self._project = Project.read(self._folder)
        #: Of this attempt at the run: when the server starts anew, so does what its nodes keep.
        self._kept = home / f"{session.node}-{session.run.epoch}.context"
        self._context = self._restored() or self._fresh(settings)
        self._app: ClientApp | None = None

    def run(self) -> None:
        """Answer messages until the server says that it was the last."""
        channel = self._session.channel
        while (frame := channel.receive()).kind != "control":
            message = from_frame(frame)
            reply = self._reply(message)
            self._keep()
            try:
                channel.send(to_frame(reply, frame.round, self._encoding))
            except (ValueError, WireError) as error:
                why = f"the app's reply cannot be sent: {error}"
                failure = self._failed(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why)
                channel.send(to_frame(failure, frame.round))
        channel.send(Frame("control", fields={"what": "goodbye"}))

    def _reply(self, message: Message) -> Message:
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        try:
            with _COMPUTING:
                if self._app is None:
                    self._app = load_client_app(self._project.client, self._folder)
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = self._app(message, self._context)
            if not isinstance(reply, Message):
                raise TypeError(f"the app replied with a {type(reply).__name__}, no Message")
        except (Exception, SystemExit) as error:
            return self._failed(message, code, blame(error, self._folder))
        return _back(reply, message)

    def _failed(self, message: Message, code: int, why: str) -> Message:
        self._session.log(f"{self._session.node}, {message.metadata.message_type}: {why}")
        return _back(failed(message, code, why), message)

    def _fresh(self, settings: FlowerRun) -> Context:
        session = self._session
        part = {"partition-id": session.shard[0], "num-partitions": session.shard[1]}
        run_config = self._project.fused(settings.run_config)
        return make_context(number_of(session.run.id), number_of(session.node), dict(part), dict(run_config))

    def _restored(self) -> Context | None:
        try:
            return context_from(self._kept.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self._kept}: {error.strerror}") from error
        except (DecodeError, ValueError) as error:
            raise StorageError(f"{self._kept} is damaged: {error}", hint="remove it: the app begins anew") from error

    def _keep(self) -> None:
        write_file(self._kept, context_bytes(self._context))


def _back(reply: Message, message: Message) -> Message:
    """Address a reply, whatever the app made of its metadata."""
    asked = message.metadata
    return address(
        reply,
        run_id=asked.run_id,
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
    )


def blame(error: BaseException, folder: Path) -> str:
    """What happened, and where in the app: the innermost line of code that came with it."""
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
    if not frames:
        return told
    last = frames[-1]
    return f"{told} ({Path(last.filename).relative_to(folder)}, line {last.lineno}, in {last.name}: {last.line})"
