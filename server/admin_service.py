"""The ``Admin`` gRPC service for submitters: nodes, runs and tokens. Every call needs an admin token."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, FarshoreError, NotFoundError, RefusedError
from ..core.handshake import ResumeFrom
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import AdminServicer
from ..runs.states import ENDED
from .rate_limit import RateLimit
from .rpc_errors import Context, abort, abort_if_blocked, metadata, peer
from .run import Run
from .run_messages import changes, page, summary
from .submission import Submission, check_request

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

_FOLLOW_SECONDS = 0.1
_MAX_TOKEN_SECONDS = 366 * 86400.0


class AdminService(AdminServicer):
    """Implements ``Admin`` of ``control.proto`` for one orchestrator.

    Parameters
    ----------
    orchestrator : Orchestrator
    addresses : callable
        Returns the addresses to which nodes can connect.
    authenticated : callable, optional
        Called with gRPC's name of the peer of each valid call.
    """

    def __init__(
        self,
        orchestrator: Orchestrator,
        addresses: Callable[[], Sequence[str]],
        authenticated: Callable[[str], None] = lambda peer: None,
    ) -> None:
        self._server, self._addresses, self._authenticated = orchestrator, addresses, authenticated
        self._failures = RateLimit()

    async def ListNodes(self, request: pb.ListRequest, context: Context) -> pb.NodeList:  # noqa: N802
        """List a page of the nodes that have ever joined, by name."""
        await self._check(context)
        nodes = sorted(self._server.registry, key=lambda n: n.name)
        start = bisect_right(nodes, request.page_token, key=lambda n: n.name)
        found, following = page(nodes, start, request.limit, lambda node: node.info())
        return pb.NodeList(nodes=found, next_page_token=found[-1].name if following else "")

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.RunInfo:  # noqa: N802
        """Submit a new run."""
        by_operator = await self._check(context)
        try:
            check_request(request)
            submission = await _submission(request.workload, request.config_json or "{}", request.data)
            return self._server.submit(request, submission, by_operator=by_operator).info()
        except FarshoreError as error:
            await abort(context, error, "submit")

    async def ListRuns(self, request: pb.ListRequest, context: Context) -> pb.RunList:  # noqa: N802
        """List a page of the runs, oldest first."""
        await self._check(context)
        try:
            start = int(request.page_token[:20] or 0)
        except ValueError:
            await abort(context, ConfigError("the page token is not one of this server"), "list runs")
        wanted = (self._server.runs.find(run_id) for run_id in request.ids)
        runs = [run for run in wanted if run is not None] if request.ids else self._server.runs.all()
        found, following = page(runs, max(0, start), request.limit, summary)
        return pb.RunList(runs=found, next_page_token=str(following) if following else "")

    async def ShowRun(self, request: pb.RunRef, context: Context) -> pb.RunInfo:  # noqa: N802
        """Return one run."""
        return (await self._run(request.id, context)).info()

    async def Follow(  # noqa: N802
        self, request: pb.FollowRequest, context: Context
    ) -> AsyncIterator[pb.RunEvent]:
        """Stream a run's changes and log lines until it has ended; without ``follow``, only its current state."""
        run = await self._run(request.id, context)
        offset, sent = 0, pb.RunInfo()
        while True:
            changed, last = run.changed, run.state in ENDED or not request.follow
            lines, offset = await asyncio.to_thread(run.log.read, offset) if request.logs else ([], 0)
            now = summary(run)
            event = changes(sent, now)
            event.log.extend(lines)
            if event.changed or lines:
                yield event
            sent = now
            if lines and last:
                continue
            if last:
                return
            await changed.wait()
            # Coalesces frequent changes into one event.
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def Cancel(self, request: pb.RunRef, context: Context) -> pb.RunInfo:  # noqa: N802
        """Cancel a run; returns once it has ended."""
        run = await self._run(request.id, context)
        self._server.cancel(run)
        while run.state not in ENDED:
            await run.changed.wait()
        return run.info()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.RunInfo:  # noqa: N802
        """Resume a run that was interrupted, failed or cancelled."""
        run = await self._run(request.id, context)
        try:
            by_operator = await self._check(context)
            submission = await _submission(run.workload, run.config_json, run.data)
            start = ResumeFrom(request.from_start, request.from_step if request.HasField("from_step") else None)
            self._server.resume(run, submission, by_operator=by_operator, start=start)
        except FarshoreError as error:
            await abort(context, error, "resume")
        return run.info()

    async def CreateToken(self, request: pb.TokenRequest, context: Context) -> pb.TokenReply:  # noqa: N802
        """Create a join token; only this reply contains its secret."""
        await self._check(context)
        seconds = request.valid_seconds or self._server.options.token_hours * 3600
        if not 0 < seconds <= _MAX_TOKEN_SECONDS:
            await abort(context, ConfigError("a join token can be valid for at most a year"), "create token")
        token = self._server.credentials.create_token(seconds, request.uses)
        return pb.TokenReply(token=str(token), id=token.id, expires=token.expires, addresses=self._addresses())

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.Empty:  # noqa: N802
        """Revoke a token, a node, or both."""
        await self._check(context)
        try:
            if request.token_id:
                self._server.credentials.revoke_token(request.token_id)
            if request.node:
                self._server.node_keys.revoke(request.node)
        except FarshoreError as error:
            await abort(context, error, "revoke")
        return pb.Empty()

    async def Trust(self, request: pb.TrustRequest, context: Context) -> pb.NodeInfo:  # noqa: N802
        """Admit a node again whose key was used in two places."""
        await self._check(context)
        try:
            return self._server.node_keys.trust(request.node).info()
        except FarshoreError as error:
            await abort(context, error, "trust")

    async def _check(self, context: Context) -> bool:
        """Abort the call without an admin token; returns whether the token is the operator's."""
        identity, token = self._server.identity, metadata(context, "farshore-admin")
        operator = identity.is_operator(token)
        if not operator:  # an operator is never shut out by guesses of other users of this machine
            await abort_if_blocked(context, self._failures, peer(context), "wrong admin tokens")
        if not operator and not identity.is_admin(token):
            self._failures.failed(peer(context))
            error = RefusedError("the admin token is wrong or missing", hint="it is in the server's home: admin.token")
            await abort(context, error, "admin call")
        self._authenticated(context.peer())
        return operator

    async def _run(self, run_id: str, context: Context) -> Run:
        await self._check(context)
        run = self._server.runs.find(run_id)
        if run is None:
            error = NotFoundError(f"no run has the id '{run_id[:40]}'", hint="see 'farshore runs ls'")
            await abort(context, error, "find run")
        return run


async def _submission(workload: str, config_json: str, data: Mapping[str, str]) -> Submission:
    """Validate a submission in a thread: importing the method's module can be slow and must not block the server."""
    return await asyncio.to_thread(Submission.validate, workload, config_json, dict(data))
