"""What was said with ``node join`` is remembered, and what is said later goes over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farshore.client.remembered import Remembered
from farshore.core.errors import StorageError


def test_everything_is_read_as_it_was_written(tmp_path: Path) -> None:
    said = Remembered(
        address="cloud:50051",
        data={"imdb": "/data/imdb"},
        labels={"room": "kitchen"},
        shard="0/2",
        profile="/p.yaml",
        certificate="/c.pem",
        accept_apps=("a" * 64,),
        peer_listen="eth0",
        keep_runs=3,
        insecure=True,
    )
    said.write(tmp_path)
    assert Remembered.read(tmp_path) == said
    for text in ("--data imdb=/data/imdb", "--label room=kitchen", "--shard 0/2", "--keep-runs 3", "--insecure"):
        assert text in said.describe()


def test_a_home_without_options_has_none(tmp_path: Path) -> None:
    assert Remembered.read(tmp_path / "none") == Remembered()
    assert Remembered().describe() == ""


def test_what_is_said_later_goes_over_what_was_said_and_data_and_labels_are_merged() -> None:
    before = Remembered("a:1", {"x": "/1", "y": "/2"}, {"room": "kitchen"}, shard="0/2", keep_runs=5)
    now = before.updated(Remembered("b:2", {"y": "/3", "z": "/4"}, {"side": "left"}, keep_runs=7))
    assert now == Remembered(
        "b:2", {"x": "/1", "y": "/3", "z": "/4"}, {"room": "kitchen", "side": "left"}, shard="0/2", keep_runs=7
    )
    assert before.updated(Remembered()) == before


_DAMAGED = ["", "[]", "null", "[" * 100_000, '{"other": 1}', '{"data": []}', '{"data": {"a": 1}}']
_DAMAGED += ['{"keep_runs": "x"}', '{"insecure": 3}', '{"accept_apps": [1]}']


@pytest.mark.parametrize("content", _DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "options.json").write_text(content)
    with pytest.raises(StorageError, match=r"options\.json is damaged"):
        Remembered.read(tmp_path)


def test_the_file_is_private(tmp_path: Path) -> None:
    Remembered(address="a:1").write(tmp_path)
    path = tmp_path / "options.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["address"] == "a:1"
