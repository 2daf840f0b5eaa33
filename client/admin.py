"""Client of the server's ``Admin`` service: runs, nodes and join tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from ..core.address import is_loopback, parse_address, proxy_options
from ..core.errors import (
    ConfigError,
    FarshoreError,
    MethodError,
    NotFoundError,
    RefusedError,
    StorageError,
    UnreachableError,
    VersionError,
)
from ..core.nodes import RoleRequest
from ..core.paths import LocalServer
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import AdminStub
from .join import SERVER_NAME, check_fingerprint

Reply = TypeVar("Reply")

_CALL_SECONDS = 30.0
_CODES: dict[grpc.StatusCode, type[FarshoreError]] = {
    grpc.StatusCode.UNAUTHENTICATED: RefusedError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: ConfigError,
    grpc.StatusCode.FAILED_PRECONDITION: VersionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusedError,
    grpc.StatusCode.ABORTED: MethodError,
    grpc.StatusCode.DATA_LOSS: StorageError,
    grpc.StatusCode.UNIMPLEMENTED: VersionError,
}


class AdminClient:
    """A submitter's connection to a server.

    Parameters
    ----------
    address : str
        ``host:port`` of the server.
    token : str
        The server's admin token.
    certificate : bytes or None
        Root certificate (PEM) to verify the server with; None = no TLS, allowed on loopback only.
    name : str, optional
        Name to verify the certificate against; by default, the name in self-signed server certificates.

    Raises
    ------
    RefusedError
        ``certificate`` is None and the server is not on loopback.
    """

    def __init__(self, address: str, token: str, certificate: bytes | None, *, name: str = SERVER_NAME) -> None:
        host, _ = parse_address(address)
        self.address = address
        #: Home of the server, if the client was created by :meth:`local`.
        self.home: Path | None = None
        self._metadata = (("farshore-admin", token),)
        if certificate is None:
            if not is_loopback(host):
                raise RefusedError(
                    f"{address} is not on this machine, so TLS is required",
                    hint="give --fingerprint or --certificate",
                )
            self._channel = grpc.insecure_channel(address, proxy_options(address))
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates=certificate)
            names = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
            options = [*names, *proxy_options(address)]
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stub = AdminStub(self._channel)

    @classmethod
    def local(cls, home: Path) -> AdminClient:
        """Connect to the server whose home is on this machine.

        Raises
        ------
        NotFoundError, StorageError
            See :meth:`farshore.core.paths.LocalServer.read`.
        """
        server = LocalServer.read(home)
        client = cls(server.address, server.token, server.certificate)
        client.home = home
        return client

    @classmethod
    def pinned(cls, address: str, token: str, fingerprint: str) -> AdminClient:
        """Connect to a server whose certificate has this SHA-256 fingerprint (hex; colons allowed).

        Raises
        ------
        RefusedError
            The server has another certificate.
        UnreachableError
            No server answers, or it does not use TLS.
        """
        expected = fingerprint.replace(":", "").strip().lower()
        return cls(address, token, check_fingerprint(address, expected))

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def nodes(self) -> list[pb.NodeInfo]:
        """Return every node that has ever joined, sorted by name."""
        found: list[pb.NodeInfo] = []
        for reply in self._pages(self._stub.ListNodes):
            found += reply.nodes
        return found

    def create_token(self, *, valid_seconds: float = 86_400.0, uses: int = 0) -> pb.TokenReply:
        """Create a join token; ``uses=0`` allows any number of nodes until it expires."""
        reply: pb.TokenReply = self._call(
            self._stub.CreateToken, pb.TokenRequest(valid_seconds=valid_seconds, uses=uses)
        )
        return reply

    def revoke(self, *, token_id: str = "", node: str = "") -> None:
        """Revoke a join token, a node's key, or both.

        Raises
        ------
        NotFoundError
            There is no such token or node.
        """
        self._call(self._stub.Revoke, pb.RevokeRequest(token_id=token_id, node=node))

    def trust(self, node: str) -> pb.NodeInfo:
        """Admit a node again whose key was used in two places: the machine that holds its newest secret.

        Raises
        ------
        NotFoundError, ConfigError
            There is no such node, or its key was not used in two places.
        """
        return self._call(self._stub.Trust, pb.TrustRequest(node=node))  # type: ignore[no-any-return]

    # ---- runs ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        workload: str,
        config: Mapping[str, Any],
        *,
        node_count: int = 0,
        nodes: Sequence[str] = (),
        roles: Sequence[RoleRequest] = (),
        seed: int | None = None,
        data: Mapping[str, str] | None = None,
        wait_seconds: float = 0.0,
    ) -> pb.RunInfo:
        """Submit a run.

        Parameters
        ----------
        workload : str
            Name of the method.
        config : Mapping
            The method's configuration; JSON-serializable.
        node_count : int
            Number of nodes for the scheduler to choose if ``nodes`` is empty; 0 = the default of each role.
        nodes : sequence of str
            The cohort by name, in order.
        roles : sequence of RoleRequest
            Instead of ``node_count`` and ``nodes``: what each role gets.
        seed : int, optional
            Root of the seed tree; by default, the server draws one.
        data : Mapping of str to str, optional
            Paths of data sets on the server, by name.
        wait_seconds : float
            How long the run may wait for nodes before it fails; 0 = without limit.

        Raises
        ------
        ConfigError, NotFoundError
            The configuration is invalid, or there is no such method or node.
        """
        request = pb.SubmitRequest(
            workload=workload,
            config_json=json.dumps(config),
            node_count=node_count,
            nodes=nodes,
            wait_seconds=wait_seconds,
        )
        for one in roles:
            request.roles.add(role=one.role, least=one.count.least, most=one.count.most, nodes=one.nodes)
        request.data.update(data or {})
        if seed is not None:
            request.seed = seed
        return self._run(self._stub.Submit, request)

    def runs(self) -> list[pb.RunInfo]:
        """Return every run, newest first, without configurations and results, which :meth:`run` returns."""
        runs: list[pb.RunInfo] = []
        for reply in self._pages(self._stub.ListRuns):
            runs += reply.runs
        return sorted(runs, key=lambda run: run.created, reverse=True)

    def run(self, run_id: str) -> pb.RunInfo:
        """Return one run; raises :class:`NotFoundError` for an unknown id."""
        return self._run(self._stub.ShowRun, pb.RunRef(id=run_id))

    def cancel(self, run_id: str) -> pb.RunInfo:
        """Cancel a run; returns once it has ended. Raises the errors of :meth:`run`."""
        return self._run(self._stub.Cancel, pb.RunRef(id=run_id))

    def resume(self, run_id: str, *, from_start: bool = False, from_step: int | None = None) -> pb.RunInfo:
        """Resume a run from its newest common checkpoint, from the start, or from a step that all its programs hold.

        Raises the errors of :meth:`run`. A resume that cannot continue from there fails the run, with the reason.
        """
        request = pb.ResumeRequest(id=run_id, from_start=from_start, from_step=from_step)
        return self._run(self._stub.Resume, request)

    def follow(self, run_id: str, *, follow: bool = True, logs: bool = False) -> Iterator[pb.RunEvent]:
        """Yield the run's changes, with its log lines if ``logs``, until it has ended.

        Each event has the whole current state, without configuration and result; the server sends what changed. With
        ``follow=False``, yield only the current state and log. Leaving the loop early ends the call. Raises the errors
        of :meth:`run`.
        """
        state = pb.RunInfo()
        with self._errors():
            request = pb.FollowRequest(id=run_id, follow=follow, logs=logs)
            call = self._stub.Follow(request, metadata=self._metadata, wait_for_ready=False)
            try:
                for event in call:
                    for name in event.changed:
                        state.ClearField(name)
                    state.MergeFrom(event.run)
                    now = pb.RunInfo()
                    now.CopyFrom(state)
                    yield pb.RunEvent(run=now, log=event.log)
            finally:
                call.cancel()

    # ---- helpers -------------------------------------------------------------------------------------------------

    def _pages(self, method: Callable[..., Reply]) -> Iterator[Reply]:
        """Yield the pages of a list."""
        token = ""
        while True:
            reply: Any = self._call(method, pb.ListRequest(page_token=token))
            yield reply
            token = reply.next_page_token
            if not token:
                return

    def _run(self, method: Callable[..., pb.RunInfo], request: Any) -> pb.RunInfo:
        return self._call(method, request)

    def _call(self, method: Callable[..., Reply], request: Any) -> Reply:
        with self._errors():
            return method(request, metadata=self._metadata, timeout=_CALL_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise translate(error, self.address) from error


def translate(error: grpc.RpcError, address: str) -> FarshoreError:
    """Convert a gRPC error of a call to the server at ``address`` to a farshore error."""
    code = error.code()
    details = " ".join((error.details() or "").split())
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        if "certificate" in details.lower() or "handshake" in details.lower():
            return RefusedError(
                f"the certificate of the server at {address} is not the pinned one",
                hint="check its fingerprint, and whether another server runs there now",
            )
        return UnreachableError(
            f"no server answers at {address}",
            hint="check the address, and that 'farshore server up' is running there",
        )
    kind = _CODES.get(code)
    if kind is None:
        return FarshoreError(
            f"the server at {address} failed ({code.name.lower()}): {details[:400]}", hint="see the server's log"
        )
    # The server formats an error as "message – hint".
    message, dash, hint = details.rpartition(" – ")
    return kind(message, hint=hint) if dash else kind(details or f"{address} answered {code.name.lower()}")
