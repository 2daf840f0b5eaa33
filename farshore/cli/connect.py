"""The options that select a server and its credentials, added to every command that connects to one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeAlias

import typer

from ..core.errors import ConfigError, NotFoundError, RefusedError, UnreachableError
from ..core.paths import server_home

if TYPE_CHECKING:
    from ..client.admin import AdminClient

P = ParamSpec("P")

#: Connects to the server that the options select; errors as :func:`connect`.
Connect: TypeAlias = "Callable[[], AdminClient]"

_OPTIONS: dict[str, Any] = {
    "server": Annotated[
        str | None,
        typer.Option("--server", envvar="FARSHORE_SERVER", help="HOST:PORT of a server on another machine."),
    ],
    "admin_token_file": Annotated[
        Path | None,
        typer.Option("--admin-token-file", envvar="FARSHORE_ADMIN_TOKEN_FILE", help="Copy of its admin.token."),
    ],
    "certificate": Annotated[
        Path | None,
        typer.Option("--certificate", envvar="FARSHORE_CERTIFICATE", help="Copy of its certificate.pem."),
    ],
    "fingerprint": Annotated[
        str | None,
        typer.Option("--fingerprint", envvar="FARSHORE_FINGERPRINT", help="SHA-256 of its certificate, hex."),
    ],
    "home": Annotated[
        Path | None, typer.Option("--home", help="Home of a server on this machine [~/.farshore/server].")
    ],
}


def connected(
    command: Callable[Concatenate[AdminClient, P], None], from_disk: Callable[..., bool] | None = None
) -> Callable[P, None]:
    """Add the connection options to ``command`` and pass it an :class:`AdminClient` as its first argument.

    When the server of this machine is unreachable or does not know the requested object, ``from_disk`` is called with
    the server's home and the command's arguments; it returns whether it could answer from files.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        given = {name: kwargs.pop(name, None) for name in _OPTIONS}
        try:
            with connect(**given) as admin:  # type: ignore[arg-type]
                command(admin, *args, **kwargs)
        except (NotFoundError, UnreachableError):
            local = from_disk is not None and given["server"] is None
            if not (local and from_disk(given["home"], *args, **kwargs)):  # type: ignore[misc]
                raise

    return _with_options(command, wrapper)


def connectable(command: Callable[Concatenate[Connect, P], None]) -> Callable[P, None]:
    """Add the connection options to ``command``; its first argument connects when it is called."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        given = {name: kwargs.pop(name, None) for name in _OPTIONS}
        command(lambda: connect(**given), *args, **kwargs)  # type: ignore[arg-type]

    return _with_options(command, wrapper)


def _with_options(command: Callable[..., None], wrapper: Callable[P, None]) -> Callable[P, None]:
    """Give ``wrapper`` the parameters of ``command`` but the first, and those of the connection."""
    signature = inspect.signature(command, eval_str=True, globals=_evaluable(command))
    parameters = list(signature.parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(n, kind, default=None, annotation=a) for n, a in _OPTIONS.items()]
    wrapper.__signature__ = signature.replace(parameters=parameters + added)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters + added}
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    return wrapper


def connect(
    server: str | None = None,
    admin_token_file: Path | None = None,
    certificate: Path | None = None,
    fingerprint: str | None = None,
    home: Path | None = None,
) -> AdminClient:
    """Connect to the server given by the options; without ``server``, to the one on this machine.

    Raises
    ------
    ConfigError
        The admin token is missing, or a file cannot be read.
    RefusedError
        Neither a certificate nor a fingerprint is given.
    """
    from ..client.admin import AdminClient

    if server is None:
        return AdminClient.local(home or server_home())
    if admin_token_file is None:
        raise ConfigError("a server on another machine needs its admin token", hint="give --admin-token-file FILE")
    token = _read(admin_token_file).decode(errors="replace").strip()
    if certificate is not None:
        return AdminClient(server, token, _read(certificate))
    if fingerprint is not None:
        return AdminClient.pinned(server, token, fingerprint)
    raise RefusedError(
        "the server's certificate cannot be verified", hint="give --fingerprint HEX or --certificate FILE"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _evaluable(command: Callable[..., None]) -> dict[str, Any]:
    # AdminClient is imported for type checking only; signature evaluation needs some object of that name.
    return {**command.__globals__, "AdminClient": object, "Connect": object}
