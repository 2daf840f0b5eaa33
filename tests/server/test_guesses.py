"""Wrong admin tokens and node keys are slowed; what is no guess is not counted, and nobody else is shut out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from farshore.client.admin import AdminClient
from farshore.client.agent import run as run_agent
from farshore.client.join import join, versions_message
from farshore.core.errors import RefusedError
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesStub

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


def test_wrong_admin_tokens_are_slowed_but_the_operator_is_not(cloud: Any) -> None:
    local = cloud.local
    with AdminClient(local.address, "wrong", local.certificate) as guesser:
        for _ in range(10):
            with pytest.raises(RefusedError, match="wrong or missing"):
                guesser.nodes()
        with pytest.raises(RefusedError, match="too many wrong admin tokens from this address"):
            guesser.nodes()
    with cloud.submitter() as submitter, pytest.raises(RefusedError, match="too many"):
        submitter.nodes()
    with cloud.admin() as operator:
        assert operator.nodes() == []


def _connect(cloud: Any, options: Any, root: bytes, key: str) -> str:
    override = [("grpc.ssl_target_name_override", "farshore-server")]
    with grpc.secure_channel(options.address, grpc.ssl_channel_credentials(root), override) as channel:
        events = iter([pb.NodeEvent(hello=pb.Hello(versions=versions_message()))])
        with pytest.raises(grpc.RpcError) as caught:
            list(NodesStub(channel).Control(events, metadata=(("farshore-key", key),), timeout=10))
    return str(caught.value.details())


def test_wrong_keys_are_slowed_for_the_node_that_they_name_only(cloud: Any) -> None:
    options = cloud.agent_options("a")
    member = join(options)
    for _ in range(10):
        assert "not known" in _connect(cloud, options, member.root, "a:wrong")
    assert "too many wrong keys" in _connect(cloud, options, member.root, "a:wrong")
    assert "too many wrong keys" in _connect(cloud, options, member.root, member.key), "not even compared"
    cloud.join("b")


def test_an_invalid_or_taken_name_and_an_expired_token_are_no_guesses(cloud: Any) -> None:
    options = cloud.agent_options("a")
    join(options)
    with cloud.admin() as admin:
        used_up = admin.create_token(uses=1).token
    join(replace(options, name="b", home=options.home / "b", token=used_up))
    elsewhere = replace(options, home=options.home / "other")
    for _ in range(6):
        for case in (
            replace(elsewhere, name="not a name"),
            replace(elsewhere, name="a"),
            replace(elsewhere, name="c", token=used_up),
        ):
            with pytest.raises(RefusedError):
                join(case)
    join(replace(elsewhere, name="c"))


def test_a_revoked_node_that_keeps_coming_is_no_guesser(cloud: Any) -> None:
    options = cloud.agent_options("a")
    join(options)
    with cloud.admin() as admin:
        admin.revoke(node="a")
    for _ in range(12):
        with pytest.raises(RefusedError, match="was revoked"):
            run_agent(replace(options, token=None))
