"""Joining and authentication against a real server with TLS: what is accepted, and the errors for what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from farshore.client.agent import run as run_agent
from farshore.client.join import join, membership
from farshore.core.errors import PortInUseError, RefusedError, VersionError
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesStub
from farshore.server.api import ServeOptions, serve

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


def test_a_node_keeps_its_key_and_needs_no_token_later(cloud: Any) -> None:
    options = cloud.agent_options("a")
    first = membership(options)
    assert (options.home / "membership.json").stat().st_mode & 0o777 == 0o600
    assert membership(replace(options, token=None)) == first


def test_a_wrong_fingerprint_is_refused_before_the_token_is_sent(cloud: Any) -> None:
    options = cloud.agent_options("a")
    other = options.token.rpartition(".")[0] + "." + "0" * 64
    with pytest.raises(RefusedError, match="fingerprint"):
        join(replace(options, token=other))
    assert cloud.node("a").state == ""
    join(options)  # the token is still valid


def test_wrong_expired_revoked_and_used_up_tokens_are_refused_in_one_line(cloud: Any) -> None:
    options = cloud.agent_options("a")
    head, _, tail = options.token.split(".", 2)[0], "", options.token.rpartition(".")[2]
    with cloud.admin() as admin:
        short = admin.create_token(valid_seconds=0.001).token
        once = admin.create_token(uses=1).token
        revoked = admin.create_token()
        admin.revoke(token_id=revoked.id)
    join(replace(options, name="b", home=options.home / "b", token=once))
    cases = {
        f"{head}.00000000.wrong.{tail}": "not known",
        short: "expired",
        revoked.token: "revoked",
        once: "used up",
    }
    for token, why in cases.items():
        with pytest.raises(RefusedError, match=why) as caught:
            join(replace(options, token=token))
        assert "\n" not in str(caught.value)


def test_a_taken_name_and_a_bad_name_are_refused(cloud: Any) -> None:
    options = cloud.agent_options("a")
    join(options)
    with pytest.raises(RefusedError, match="belongs to another node"):
        join(replace(options, home=options.home / "other"))
    with pytest.raises(RefusedError, match="not a valid node name"):
        join(replace(options, name="../a", home=options.home / "other"))


def test_a_revoked_node_is_disconnected_and_its_agent_ends(cloud: Any, until: Any) -> None:
    cloud.join("a")
    with cloud.admin() as admin:
        admin.revoke(node="a")
    cloud.agents["a"].join(5)
    assert cloud.agents["a"].exitcode == 1  # ended with an error
    assert cloud.node("a").state == "revoked"
    with pytest.raises(RefusedError, match="revoked"):
        run_agent(replace(cloud.agent_options("a"), token=None))


def test_last_seen_survives_a_server_restart(cloud: Any, until: Any) -> None:
    cloud.join("a")
    joined = cloud.node("a").last_seen
    until(lambda: cloud.node("a").last_seen > joined)
    last = cloud.node("a").last_seen
    cloud.down()
    cloud.up()
    node = cloud.node("a")
    assert (node.state, node.last_seen >= last) == ("lost", True)


def test_guessing_tokens_is_rate_limited(cloud: Any) -> None:
    options = cloud.agent_options("a")
    guess = f"fs1.00000000.guess.{options.token.rpartition('.')[2]}"
    for _ in range(10):
        with pytest.raises(RefusedError, match="not known"):
            join(replace(options, token=guess))
    with pytest.raises(RefusedError, match="too many failed joins"):
        join(options)


def test_an_incompatible_version_is_refused_at_join_and_at_the_control_stream(cloud: Any, monkeypatch: Any) -> None:
    options = cloud.agent_options("a")
    member = join(options)
    other = pb.Versions(protocol=999, farshore="9.9", python="3.11")
    monkeypatch.setattr("farshore.client.join.versions_message", lambda: other)
    with pytest.raises(VersionError, match="protocol 999"):
        join(replace(options, name="b", home=options.home / "b"))
    credentials = grpc.ssl_channel_credentials(member.root)
    override = [("grpc.ssl_target_name_override", "farshore-server")]
    with grpc.secure_channel(options.address, credentials, override) as channel:
        events = iter([pb.NodeEvent(hello=pb.Hello(versions=other))])
        with pytest.raises(grpc.RpcError) as caught:
            list(NodesStub(channel).Control(events, metadata=(("farshore-key", member.key),), timeout=10))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("key", [None, "", "a:wrong", "nobody:x"])
def test_a_control_stream_without_a_valid_key_is_refused(cloud: Any, key: str | None) -> None:
    options = cloud.agent_options("a")
    member = join(options)
    credentials = grpc.ssl_channel_credentials(member.root)
    override = [("grpc.ssl_target_name_override", "farshore-server")]
    with grpc.secure_channel(options.address, credentials, override) as channel:
        metadata = () if key is None else (("farshore-key", key),)
        with pytest.raises(grpc.RpcError) as caught:
            list(NodesStub(channel).Control(iter([]), metadata=metadata, timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_data_connection_without_a_ticket_is_refused(cloud: Any) -> None:
    root = cloud.local.certificate
    override = [("grpc.ssl_target_name_override", "farshore-server")]
    with grpc.secure_channel(cloud.local.address, grpc.ssl_channel_credentials(root), override) as channel:
        attach = channel.stream_stream("/farshore.data.v1.Data/Attach")
        with pytest.raises(grpc.RpcError) as caught:
            list(attach(iter([b"x"]), metadata=(("farshore-ticket", "guess"),), timeout=10))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_admin_calls_need_the_admin_token(cloud: Any) -> None:
    from farshore.client.admin import AdminClient

    for token in ("", "wrong"):
        with AdminClient(cloud.local.address, token, cloud.local.certificate) as admin:
            for call in (admin.nodes, admin.runs, admin.create_token, lambda a=admin: a.submit("ping", {})):
                with pytest.raises(RefusedError, match="admin token"):
                    call()


def test_a_second_server_on_the_port_or_in_the_home_is_refused(cloud: Any, tmp_path: Any) -> None:
    with pytest.raises(PortInUseError, match="--port"):
        serve(replace(cloud.options, home=tmp_path / "other"))
    with pytest.raises(RefusedError, match="another server"):
        serve(replace(cloud.options, port=0))
    assert cloud.local.address  # the first one's files are untouched


def test_off_loopback_without_tls_is_refused(tmp_path: Any) -> None:
    with pytest.raises(RefusedError, match="without TLS"):
        serve(ServeOptions(home=tmp_path / "home", host="0.0.0.0", port=0, insecure=True))
