"""The node program of a Flower app: runs a ClientApp on received messages and stores its context on disk."""

from __future__ import annotations

import traceback
from pathlib import Path

from google.protobuf.message import DecodeError

from ...core.errors import StorageError, WireError
from ...core.files import write_file
from ...core.session import NodeSession
from ...wire.encodings import parse
from .archive import unpack_app
from .arrays import from_frame, to_frame
from .compat import (
    ClientApp,
    Context,
    ErrorCode,
    Message,
    context_bytes,
    context_from_bytes,
    error_reply,
    load_client_app,
    make_context,
    redirect_flower_logging,
    set_metadata,
)
from .config import FlowerRun
from .flower_ids import flower_id, node_id
from .project import Project
from .protocol import Done, Goodbye
from .requirements import differences
from .turns import turn

_SERVER = "the server"


class Host:
    """Runs the ClientApp of a Flower app.

    Parameters
    ----------
    session : NodeSession
        Session of the node program.
    settings : FlowerRun
        Configuration of the run.

    Raises
    ------
    RefusedError
        This node does not accept the app, or the archive is damaged or has another hash.
    """

    def __init__(self, session: NodeSession, settings: FlowerRun) -> None:
        session.admit(settings.code)
        redirect_flower_logging()
        self._session, self._encoding = session, parse(settings.up_encoding)
        directory = session.run.directory / "flower"
        self._folder = unpack_app(settings.archive, settings.digest, directory / f"app-{settings.digest[:16]}")
        self._project = Project.read(self._folder)
        for line in differences(self._project.requirements):
            session.log(f"{session.node}: {line}")
        # One file per restart epoch: a restarted ServerApp begins at its first round, with new client states.
        self._context_path = directory / f"{session.node}-{session.run.epoch}.context"
        self._context = self._load_context() or self._new_context(settings)
        self._app: ClientApp | None = None

    def run(self) -> None:
        """Answer messages until the server ends the app.

        Raises
        ------
        WireError
            The server sent an invalid message.
        """
        channel = self._session.channel
        while (frame := channel.receive()).kind != Done.kind:
            message = from_frame(frame, _SERVER)
            reply = self._reply(message)
            self._save_context()
            try:
                channel.send(to_frame(reply, frame.round, self._encoding))
            except (ValueError, WireError) as error:
                reason = f"the app's reply cannot be sent: {error}"
                failure = self._error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
                channel.send(to_frame(failure, frame.round))
        Done.read(frame, _SERVER)
        channel.send(Goodbye().message())

    def _reply(self, message: Message) -> Message:
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        try:
            with turn():
                if self._app is None:
                    self._app = load_client_app(self._project.client, self._folder)
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = self._app(message, self._context)
            if not isinstance(reply, Message):
                raise TypeError(f"the app replied with a {type(reply).__name__}, not a Message")
        except (Exception, SystemExit) as error:
            return self._error_reply(message, code, describe_exception(error, self._folder))
        return _set_reply_metadata(reply, message)

    def _error_reply(self, message: Message, code: int, reason: str) -> Message:
        self._session.log(f"{self._session.node}, {message.metadata.message_type}: {reason}")
        return _set_reply_metadata(error_reply(message, code, reason), message)

    def _new_context(self, settings: FlowerRun) -> Context:
        session = self._session
        node_config = {"partition-id": session.shard[0], "num-partitions": session.shard[1]}
        run_config = self._project.fused(settings.run_config)
        own = node_id(session.node, session.shard[0])
        return make_context(flower_id(session.run.id), own, dict(node_config), dict(run_config))

    def _load_context(self) -> Context | None:
        path = self._context_path
        try:
            return context_from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        except (DecodeError, ValueError) as error:
            raise StorageError(f"{path} is damaged: {error}", hint="remove it; the client's state is lost") from error

    def _save_context(self) -> None:
        write_file(self._context_path, context_bytes(self._context))


def _set_reply_metadata(reply: Message, message: Message) -> Message:
    """Set the metadata of a reply to ``message``, overriding what the app set."""
    request = message.metadata
    return set_metadata(
        reply,
        run_id=request.run_id,
        src_node_id=request.dst_node_id,
        dst_node_id=request.src_node_id,
        reply_to_message_id=request.message_id,
    )


def describe_exception(error: BaseException, folder: Path) -> str:
    """Describe an exception and the innermost line of the app's own code in its traceback."""
    description = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
    if not frames:
        return description
    last = frames[-1]
    location = f"{Path(last.filename).relative_to(folder)}, line {last.lineno}, in {last.name}: {last.line}"
    return f"{description} ({location})"
