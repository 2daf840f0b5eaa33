"""What every service does alike: read a credential from a call's metadata, answer an error with a gRPC status."""

from __future__ import annotations

import logging
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from ..core.errors import ConfigError, FarshoreError, NotFoundError, RefusedError, VersionError
from .credentials import RevokedError

_log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_STATUS: tuple[tuple[type[FarshoreError], grpc.StatusCode], ...] = (
    (VersionError, grpc.StatusCode.FAILED_PRECONDITION),
    (RevokedError, grpc.StatusCode.PERMISSION_DENIED),
    (RefusedError, grpc.StatusCode.UNAUTHENTICATED),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
)


def metadata(context: Context, key: str) -> str:
    """A value of the call's metadata, or an empty string."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else ""
    return ""


def peer(context: Context) -> str:
    """The caller's host, without its port."""
    kind, _, rest = context.peer().partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


async def refuse(context: Context, error: FarshoreError, what: str) -> NoReturn:
    """End the call with the error's one line, and log that line here too."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    _log.warning("refused %s from %s: %s", what, peer(context), error)
    await context.abort(status, str(error))
    raise AssertionError("abort raises")
