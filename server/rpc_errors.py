"""Helpers of the gRPC services: read call metadata, and abort a call with the status of an error."""

from __future__ import annotations

import logging
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio

from ..core.errors import ConfigError, FarshoreError, MethodError, NotFoundError, RefusedError, VersionError
from .credentials import RevokedError
from .rate_limit import RateLimit
from .rolling_secrets import ContestedError, StaleSecretError

_log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_STATUS: tuple[tuple[type[FarshoreError], grpc.StatusCode], ...] = (
    (VersionError, grpc.StatusCode.FAILED_PRECONDITION),
    (RevokedError, grpc.StatusCode.PERMISSION_DENIED),
    (StaleSecretError, grpc.StatusCode.PERMISSION_DENIED),
    (ContestedError, grpc.StatusCode.ABORTED),  # the agent tries again: an operator may admit it
    (RefusedError, grpc.StatusCode.UNAUTHENTICATED),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (MethodError, grpc.StatusCode.ABORTED),
)


def metadata(context: Context, key: str) -> str:
    """Return a value of the call's metadata, or an empty string."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else ""
    return ""


def peer(context: Context) -> str:
    """Return the caller's host, without its port."""
    kind, _, rest = context.peer().partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


async def abort_if_blocked(context: Context, limit: RateLimit, caller: str, what: str) -> None:
    """Abort the call if ``caller`` has failed too often of late; its secret is then not compared at all."""
    if (wait := limit.blocked(caller)) > 0:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many {what} from this address; wait {wait:.0f} s")


async def abort(context: Context, error: FarshoreError, operation: str) -> NoReturn:
    """Log ``error`` and abort the call with its message and gRPC status."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    _log.warning("refused: %s from %s: %s", operation, peer(context), error)
    await context.abort(status, str(error))
    raise AssertionError("context.abort always raises")
