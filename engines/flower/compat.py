"""Everything that we use of Flower and that moves between its versions; nothing else here imports ``flwr``.

Imported when a program starts, never before: ``import flwr`` takes seconds. Tested with 1.41 and 1.42.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from ...core.errors import MissingExtraError, VersionError
from ...core.version import installed

#: Releases that the tests pass with.
TESTED = "1.41 to 1.42"

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # Flower would let gRPC's core write lines of its own
try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
    from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.server.run_serverapp import run as run_server_app
    from flwr.serverapp import Grid, ServerApp
    from flwr.supercore.object_ref import load_app
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ModuleNotFoundError as error:
    if error.name == "flwr":
        raise MissingExtraError("flwr", "federated") from error
    raise VersionError(
        f"flwr {installed('flwr')} has no '{error.name}'", hint=f"install a release that is tested: {TESTED}"
    ) from error
except ImportError as error:
    raise VersionError(
        f"flwr {installed('flwr')} is not the one that is expected: {error}",
        hint=f"install a release that is tested: {TESTED}",
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
    "ServerApp",
    "address",
    "context_bytes",
    "context_from",
    "failed",
    "load_client_app",
    "log_through_ours",
    "make_context",
    "make_run",
    "message_bytes",
    "message_from",
    "run_server_app",
    "take_identity",
    "with_content",
]


def make_run(number: int, changes: dict[str, Any]) -> Run:
    """A run as apps see it."""
    run = Run.create_empty(number)
    run.override_config = changes
    return run


def log_through_ours() -> None:
    """Take Flower's own console away: what it logs goes where the program's log goes."""
    logger = logging.getLogger("flwr")
    logger.handlers = [h for h in logger.handlers if type(h).__module__.split(".")[0] != "flwr"]
    logger.setLevel(logging.INFO)
    logger.propagate = True


def take_identity(run: int) -> None:
    """Let this process make messages as the server of a run; Flower keeps that per process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, SUPERLINK_NODE_ID


def make_context(run: int, node: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    """A context without any state."""
    return Context(run_id=run, node_id=node, node_config=node_config, state=RecordDict(), run_config=run_config)


def context_bytes(context: Context) -> bytes:
    """A context as bytes."""
    return context_to_proto(context).SerializeToString(deterministic=True)


def context_from(data: bytes) -> Context:
    """Undo :func:`context_bytes`; a ``DecodeError`` or ``ValueError`` where it is damaged."""
    return context_from_proto(ProtoContext.FromString(data))


def message_bytes(message: Message) -> bytes:
    """A message as bytes."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def message_from(data: bytes) -> Message:
    """Undo :func:`message_bytes`; a ``DecodeError`` or ``ValueError`` where it is damaged."""
    return message_from_proto(ProtoMessage.FromString(data))


def with_content(message: Message, content: RecordDict | None) -> Message:
    """A message of the same metadata and error, and other content."""
    return Message(  # type: ignore[call-overload,no-any-return]
        metadata=message.metadata, content=content, error=message.error if message.has_error() else None
    )


def address(message: Message, **to: Any) -> Message:
    """Give a message an identity and set what its metadata guard: ``run_id``, ``src_node_id`` …; returns it."""
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    for name, value in to.items():
        message.metadata.__dict__[f"_{name}"] = value
    return message


def failed(message: Message, code: int, reason: str) -> Message:
    """The reply that says that ``message`` led to nothing."""
    return address(Message(Error(code, reason), reply_to=message))


def load_client_app(reference: str, folder: Path) -> ClientApp:
    """Load a ClientApp; whatever its module raises, and a ``TypeError`` where the name stands for something else."""
    app = load_app(reference, TypeError, folder)
    if not isinstance(app, ClientApp):
        raise TypeError(f"{reference} is a {type(app).__name__}, no ClientApp")
    return app
