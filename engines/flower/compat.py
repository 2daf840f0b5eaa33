"""Compatibility layer for Flower: the only module of this package that imports ``flwr``.

It collects everything that changes between Flower's releases. It is imported when a program starts, because ``import
flwr`` takes seconds. Tested with 1.41 and 1.42.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from ...core.errors import MissingExtraError, VersionError
from ...core.version import installed

#: Tested releases.
TESTED = "1.41 to 1.42"

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # keep gRPC's core from logging to stderr
try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
    from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.server.run_serverapp import run as run_server_app
    from flwr.server.server import Server
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy
    from flwr.supercore.object_ref import load_app
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ModuleNotFoundError as error:
    if error.name == "flwr":
        raise MissingExtraError("flwr", "federated") from error
    raise VersionError(
        f"flwr {installed('flwr')} has no module '{error.name}'", hint=f"install a tested release: {TESTED}"
    ) from error
except ImportError as error:
    raise VersionError(
        f"flwr {installed('flwr')} is not supported: {error}",
        hint=f"install a tested release: {TESTED}",
    ) from error

__all__ = [
    "SUPERLINK_NODE_ID",
    "TESTED",
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "ErrorCode",
    "Grid",
    "Message",
    "Metadata",
    "MetricRecord",
    "RecordDict",
    "Run",
    "SType",
    "Server",
    "ServerApp",
    "Strategy",
    "context_bytes",
    "context_from_bytes",
    "error_reply",
    "load_client_app",
    "make_context",
    "make_run",
    "message_bytes",
    "message_from_bytes",
    "redirect_flower_logging",
    "run_server_app",
    "set_metadata",
    "set_server_identity",
    "with_content",
]


def make_run(run_id: int, overrides: dict[str, Any]) -> Run:
    """Flower's description of a run, with overrides of the app's configuration."""
    run = Run.create_empty(run_id)
    run.override_config = overrides
    return run


def redirect_flower_logging() -> None:
    """Remove Flower's console handler, so that its log records propagate to the program's log."""
    logger = logging.getLogger("flwr")
    logger.handlers = [h for h in logger.handlers if type(h).__module__.split(".")[0] != "flwr"]
    logger.setLevel(logging.INFO)
    logger.propagate = True


def set_server_identity(run_id: int) -> None:
    """Set this process's identity to the server of a run; Flower reads it when messages are created."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID


def make_context(run_id: int, node_id: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    """A context with empty state."""
    return Context(run_id=run_id, node_id=node_id, node_config=node_config, state=RecordDict(), run_config=run_config)


def context_bytes(context: Context) -> bytes:
    """Serialize a context."""
    return context_to_proto(context).SerializeToString(deterministic=True)


def context_from_bytes(data: bytes) -> Context:
    """Parse the result of :func:`context_bytes`; raises ``DecodeError`` or ``ValueError`` if it is damaged."""
    return context_from_proto(ProtoContext.FromString(data))


def message_bytes(message: Message) -> bytes:
    """Serialize a message."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def message_from_bytes(data: bytes) -> Message:
    """Parse the result of :func:`message_bytes`; raises ``DecodeError`` or ``ValueError`` if it is damaged."""
    return message_from_proto(ProtoMessage.FromString(data))


def with_content(message: Message, content: RecordDict | None) -> Message:
    """A message with the metadata and error of ``message`` and other content."""
    return Message(  # type: ignore[call-overload,no-any-return]
        metadata=message.metadata, content=content, error=message.error if message.has_error() else None
    )


def set_metadata(message: Message, **values: Any) -> Message:
    """Set a new message id, and read-only metadata such as ``run_id`` and ``src_node_id``; returns the message."""
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    for name, value in values.items():
        message.metadata.__dict__[f"_{name}"] = value
    return message


def error_reply(message: Message, code: int, reason: str) -> Message:
    """An error reply to ``message``."""
    return set_metadata(Message(Error(code, reason), reply_to=message))


def load_client_app(reference: str, folder: Path) -> ClientApp:
    """Load a ClientApp; raises what its module raises, and ``TypeError`` if the object is not a ClientApp."""
    app = load_app(reference, TypeError, folder)
    if not isinstance(app, ClientApp):
        raise TypeError(f"{reference} is a {type(app).__name__}, not a ClientApp")
    return app
