"""How ``--nodes`` and ``--node`` are read."""

from __future__ import annotations

import pytest

from farshore.cli.cohort import role_requests
from farshore.core.errors import ConfigError
from farshore.core.nodes import RoleCount, RoleRequest


def test_without_options_nothing_is_asked_for() -> None:
    assert role_requests(None, ()) == ()


def test_numbers_names_and_roles() -> None:
    assert role_requests("4", ()) == (RoleRequest("", RoleCount(4, 4)),)
    assert role_requests("2..5", ()) == (RoleRequest("", RoleCount(2, 5)),)
    assert role_requests(None, ("b", "a")) == (RoleRequest("", RoleCount(2, 2), ("b", "a")),)
    assert role_requests("lidar=1, camera=2..6", ("lidar=roof",)) == (
        RoleRequest("lidar", RoleCount(1, 1), ("roof",)),
        RoleRequest("camera", RoleCount(2, 6)),
    )
    assert role_requests("2..4", ("a", "b")) == (RoleRequest("", RoleCount(2, 4), ("a", "b")),)


@pytest.mark.parametrize(
    ("counts", "names"),
    [("", ()), ("x", ()), ("=4", ()), ("a=1,a=2", ()), ("3", ("a", "b")), ("a=2", ("a=x",)), ("4,", ())],
)
def test_contradictions_are_refused(counts: str, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        role_requests(counts, names)
