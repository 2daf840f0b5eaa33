"""A node refuses commands that no farshore server sends, above all ids that would lead out of its home."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.client.commands import check_start, heartbeat_interval
from farshore.core.errors import WireError
from farshore.proto import control_pb2 as pb
from farshore.runs.ids import new_run_id

SOUND: dict[str, Any] = {"run_id": new_run_id(), "workload": "ping", "nodes": ["a", "b-1.x_Y"], "shard_count": 2}


def test_a_servers_own_commands_pass() -> None:
    check_start(pb.StartProgram(**SOUND))
    check_start(pb.StartProgram(**{**SOUND, "role": "camera", "data_port": 50100, "shard_index": 1}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "../../.ssh"),
        ("run_id", ".."),
        ("run_id", "/etc/cron.d/x"),
        ("run_id", "a/b"),
        ("run_id", "a\x00b"),
        ("run_id", ""),
        ("run_id", "x" * 101),
        ("run_id", "line\nbreak"),
        ("nodes", ["../a"]),
        ("nodes", ["a"] * 100_001),
        ("role", "a b"),
        ("data_port", 65536),
        ("shard_index", 2),
        ("config_json", "x" * ((1 << 20) + 1)),
        ("ticket", "x" * 513),
        ("workload", "x" * 201),
    ],
)
def test_other_commands_are_refused(field: str, value: Any) -> None:
    with pytest.raises(WireError, match="the server sent an invalid command") as caught:
        check_start(pb.StartProgram(**{**SOUND, field: value}))
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_heartbeat_intervals_are_bounded() -> None:
    assert heartbeat_interval(pb.Welcome(heartbeat_seconds=2.5)) == 2.5
    assert heartbeat_interval(pb.Welcome()) == 5.0
    for seconds in (float("nan"), float("inf"), -1.0, 1e-9, 1e9):
        with pytest.raises(WireError, match="heartbeats"):
            heartbeat_interval(pb.Welcome(heartbeat_seconds=seconds))
