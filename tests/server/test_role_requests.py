"""Role requests of a run: defaults, validation, and the demands for the scheduler at start and restart."""

from __future__ import annotations

import pytest

from farshore.core.errors import ConfigError
from farshore.core.nodes import Role, RoleCount, RoleRequest
from farshore.proto import control_pb2 as pb
from farshore.server.role_requests import demands_of, from_json, requests_of, resolve, to_json

ROLES = (Role("lidar", needs=("torch",)), Role("camera", 6, labels={"sensor": "camera"}))
ONE = (Role("node", data=(("glue", "sst2"),)),)


def resolved(
    roles: tuple[Role, ...] = ROLES, *requested: RoleRequest, may_join: bool = True
) -> tuple[RoleRequest, ...]:
    return resolve("cmt", roles, requested, may_join=may_join)


def test_roles_without_a_request_get_their_defaults() -> None:
    found = resolved(ROLES, RoleRequest("camera", RoleCount(2, 2)))
    assert [(r.role, r.count.least) for r in found] == [("lidar", 1), ("camera", 2)]


def test_a_count_without_a_role_applies_to_the_only_role() -> None:
    (found,) = resolved(ONE, *requests_of(pb.SubmitRequest(node_count=3)))
    assert (found.role, found.count) == ("node", RoleCount(3, 3))
    with pytest.raises(ConfigError, match="has the roles lidar, camera") as caught:
        resolved(ROLES, *requests_of(pb.SubmitRequest(node_count=3)))
    assert caught.value.hint == "write --nodes lidar=1,camera=6"


def test_named_nodes_determine_the_count() -> None:
    (found,) = resolved(ONE, *requests_of(pb.SubmitRequest(nodes=["b", "a"])))
    assert (found.count.least, found.nodes) == (2, ("b", "a"))
    with pytest.raises(ConfigError, match="same node twice"):
        requests_of(pb.SubmitRequest(roles=[pb.RoleRequest(role=r, nodes=["a"]) for r in ("lidar", "camera")]))


@pytest.mark.parametrize(
    ("requested", "may_join", "message"),
    [
        ([RoleRequest("cameras", RoleCount(1, 1))], True, "no role 'cameras'"),
        ([RoleRequest("camera", RoleCount(1, 1))] * 2, True, "given twice"),
        ([RoleRequest("camera", RoleCount(1, 4))], False, "nodes cannot join"),
        ([RoleRequest("camera", RoleCount(0, 0)), RoleRequest("lidar", RoleCount(0, 0))], True, "has no nodes"),
    ],
)
def test_invalid_requests_are_refused(requested: list[RoleRequest], may_join: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(ROLES, *requested, may_join=may_join)


def test_demands_contain_the_requirements_of_their_role() -> None:
    lidar, camera = demands_of("m", ROLES, resolved(), {}, ())
    assert (lidar.role, lidar.count, lidar.needs) == ("lidar", 1, ("torch",))
    assert (camera.role, camera.count, camera.labels) == ("camera", 6, {"sensor": "camera"})


def test_a_restart_gets_the_same_nodes_in_the_same_roles() -> None:
    requests = resolved(ROLES, RoleRequest("camera", RoleCount(2, 2)))
    cohort = {"l": "lidar", "c2": "camera", "c1": "camera"}
    assert [d.names for d in demands_of("m", ROLES, requests, cohort, {"l"})] == [("l",), ("c2", "c1")]


def test_a_run_that_grew_restarts_with_the_available_nodes() -> None:
    requests = resolved(ONE, RoleRequest("", RoleCount(2, 9)))
    cohort = dict.fromkeys("abcd", "node")
    (demand,) = demands_of("m", ONE, requests, cohort, {"b", "d", "c"})
    assert demand.names == ("b", "c", "d")
    (demand,) = demands_of("m", ONE, requests, cohort, {"d"})
    assert demand.names == ("d", "a"), "it waits for as many as it began with"


def test_requests_and_cohorts_are_stored() -> None:
    requests = resolved(ROLES, RoleRequest("camera", RoleCount(2, 5), ("x", "y")))
    assert from_json(to_json(requests, {"x": "camera"})) == (requests, {"x": "camera"})


@pytest.mark.parametrize(("text", "least", "most"), [("4", 4, 4), ("4..8", 4, 8), (" 0..2 ", 0, 2)])
def test_node_counts_are_parsed(text: str, least: int, most: int) -> None:
    assert RoleCount.parse(text) == RoleCount(least, most)
    assert RoleCount.parse("2+").most > 1000


@pytest.mark.parametrize("text", ["", "x", "-1", "4..", "8..4", "0", "1.5", "4+8", "99999999"])
def test_invalid_node_counts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        RoleCount.parse(text)
