"""Joining a server: verify its certificate against the join token and exchange the token for a node key."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from ..core.address import is_loopback, parse_address, proxy_options
from ..core.errors import FarshoreError, RefusedError, StorageError, UnreachableError, VersionError
from ..core.files import private_folder, write_file
from ..core.version import Versions
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import NodesStub
from .options import AgentOptions

#: The name that a pinned certificate is verified against, independent of the address.
SERVER_NAME = "farshore-server"

#: File with the text of a join whose reply has not been stored yet.
_ATTEMPT = "join.attempt"
# Short enough that an agent stopped while joining ends within five seconds.
_CALL_SECONDS = 4.0
_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True)
class Membership:
    """The credentials of a node for its server.

    Attributes
    ----------
    name, key : str
        The node's name and its bearer key.
    root : bytes or None
        Root certificate (PEM) to verify the server with; None = no TLS.
    pinned : bool
        Whether ``root`` is the server's self-signed certificate, which is verified against a fixed name.
    server_id : str
        The server's id.
    secrets : (str, str)
        The rolling secret, which changes with each connection, and the one before; see ``docs/security.md``.
    """

    name: str
    key: str
    root: bytes | None
    pinned: bool
    server_id: str = ""
    secrets: tuple[str, str] = ("", "")

    def store(self, home: Path) -> None:
        """Write the membership to the node's home; when it returns, it survives a loss of power.

        Raises
        ------
        StorageError
            The home cannot be written; the membership in it is unchanged.
        """
        private_folder(home)
        if self.root is not None:
            write_file(home / "server.pem", self.root)
        fields = {"name": self.name, "key": self.key, "pinned": self.pinned, "tls": self.root is not None}
        fields |= {"server_id": self.server_id, "secrets": list(self.secrets)}
        write_file(home / "membership.json", json.dumps(fields).encode())

    def with_secret(self, secret: str) -> Membership:
        """Return the membership with the next rolling secret."""
        return replace(self, secrets=(secret, self.secrets[0]))


@dataclass(frozen=True, slots=True)
class Token:
    """The parts of a join token, ``fs1.<id>.<secret>.<fingerprint>``."""

    secret: str
    fingerprint: str

    @classmethod
    def parse(cls, text: str) -> Token:
        """Parse a join token; surrounding whitespace is ignored.

        Raises
        ------
        RefusedError
            ``text`` is not a join token.
        """
        parts = text.strip().split(".")
        if len(parts) != 4 or parts[0] != "fs1" or not parts[1] or not parts[2] or len(parts[3]) not in (0, 64):
            raise RefusedError("this is not a join token", hint="copy the whole line that starts with 'fs1.'")
        return cls(f"{parts[1]}.{parts[2]}", parts[3].lower())


def versions_message() -> pb.Versions:
    """Return the versions of this process as a message."""
    here = Versions.local()
    return pb.Versions(protocol=here.protocol, farshore=here.farshore, torch=here.torch, python=here.python)


def membership(options: AgentOptions) -> Membership:
    """Load the membership from the node's home, or join with ``options.token``. Blocks.

    Raises
    ------
    RefusedError, VersionError
        There is neither a membership nor a token; or the token, the name, the version or the server's certificate is
        not accepted.
    UnreachableError
        No server answers at the address.
    StorageError
        The home cannot be read or written.
    """
    member = _load(options)
    return member if member is not None else join(options)


def join(options: AgentOptions) -> Membership:
    """Exchange ``options.token`` for a new key and store it in the node's home.

    Raises the errors of :func:`membership`.
    """
    host, _ = parse_address(options.address)
    if options.insecure and not is_loopback(host):
        raise RefusedError(f"{host} is not this machine", hint="without TLS, only loopback addresses are allowed")
    if not options.token:
        raise RefusedError(
            f"the node '{options.name}' has no key for {options.address} yet",
            hint="give a join token (--token)",
        )
    token = Token.parse(options.token)
    root = None if options.insecure else _root(options, token.fingerprint)
    pinned = options.ca is None
    attempt = _attempt(options.home)
    with _channel(options.address, root, pinned) as channel:
        request = pb.JoinRequest(
            token_secret=token.secret, name=options.name, versions=versions_message(), attempt=attempt
        )
        try:
            reply = NodesStub(channel).Join(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            raise rpc_error(error, options.address) from error
    member = Membership(reply.name, reply.node_key, root, pinned, reply.server_id, (reply.secret, ""))
    member.store(options.home)
    (options.home / _ATTEMPT).unlink(missing_ok=True)
    return member


def _attempt(home: Path) -> str:
    """Return the text by which the server recognizes repeats of this join; it is kept until the join is complete."""
    path = private_folder(home) / _ATTEMPT
    try:
        return path.read_text()
    except FileNotFoundError:
        text = secrets.token_urlsafe(24)
        write_file(path, text.encode())
        return text
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}", hint="delete it and join again") from error


def rpc_error(error: grpc.RpcError, address: str, *, joined: bool = False) -> FarshoreError:
    """Convert the error of a failed call to the server at ``address`` to a farshore error.

    A node that has ``joined`` outlasts a refusal that ends by itself, so that it is an :class:`UnreachableError`.
    """
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return VersionError(f"{address} refused: {details}")
    if code in _REFUSALS and not (joined and code is grpc.StatusCode.RESOURCE_EXHAUSTED):
        return RefusedError(f"{address} refused: {details}")
    if code in (grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return UnreachableError(f"{address} refuses this node for now: {details}")
    return UnreachableError(
        f"no answer from {address}: {details}", hint="check the address, and that the server is running"
    )


def fetch_certificate(address: str) -> str:
    """Fetch the certificate (PEM) of the server at ``address``, unverified.

    Raises
    ------
    UnreachableError
        No server answers, or it does not use TLS.
    """
    host, port = parse_address(address)
    try:
        return ssl.get_server_certificate((host, port), timeout=_CALL_SECONDS)
    except ssl.SSLError as error:
        raise UnreachableError(
            f"{address} does not use TLS: {error.reason}", hint="does the server run with --insecure?"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
        raise UnreachableError(
            f"no server answers at {address}: {reason}", hint="check the address, and that the server is running"
        ) from error


def check_fingerprint(address: str, expected: str) -> bytes:
    """Fetch the server's certificate (PEM) and compare its SHA-256 fingerprint with ``expected``.

    Raises
    ------
    RefusedError
        The fingerprints differ.
    """
    pem = fetch_certificate(address)
    found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if not hmac.compare_digest(found, expected):
        raise RefusedError(
            f"the certificate of {address} has the fingerprint {found[:16]}…, expected {expected[:16]}…",
            hint="this may be another server or an interception; ask the server's operator for a new token",
        )
    return pem.encode()


def check_unchanged(address: str, member: Membership) -> None:
    """Raise :class:`RefusedError` if the server's certificate is not the pinned one. Blocks."""
    if member.root is not None and member.pinned:
        first = ssl.PEM_cert_to_DER_cert(_first_certificate(member.root.decode()))
        check_fingerprint(address, hashlib.sha256(first).hexdigest())


def _first_certificate(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    return pem[: pem.index(end) + len(end)] + "\n"


def _root(options: AgentOptions, expected: str) -> bytes:
    if options.ca is not None:
        try:
            return options.ca.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {options.ca}: {error.strerror}") from error
    if not expected:
        raise RefusedError("the join token has no fingerprint", hint="its server runs without TLS: use --insecure")
    return check_fingerprint(options.address, expected)


def _channel(address: str, root: bytes | None, pinned: bool) -> grpc.Channel:
    if root is None:
        return grpc.insecure_channel(address, proxy_options(address))
    name = [("grpc.ssl_target_name_override", SERVER_NAME)] if pinned else []
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root), [*name, *proxy_options(address)])


def _certificate(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        text = content.decode("ascii")
        ssl.PEM_cert_to_DER_cert(_first_certificate(text))
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        hint = "restore it, or delete membership.json beside it and join again with a token"
        raise StorageError(f"{path} is damaged: it holds no certificate", hint=hint) from error
    return content


def _load(options: AgentOptions) -> Membership | None:
    path = options.home / "membership.json"
    try:
        data = json.loads(path.read_bytes())
        name, key, pinned, tls = str(data["name"]), str(data["key"]), bool(data["pinned"]), bool(data["tls"])
        server_id, (secret, previous) = str(data["server_id"]), data.get("secrets", ("", ""))
        root = _certificate(options.home / "server.pem") if tls else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged", hint="delete it and join again with a token") from error
    if name != options.name:
        raise RefusedError(f"{options.home} belongs to the node '{name}'", hint="give this node another --home")
    if tls == options.insecure:
        return None  # the server switched TLS on or off; a new membership is needed
    return Membership(name, key, root, pinned, server_id, (str(secret), str(previous)))
