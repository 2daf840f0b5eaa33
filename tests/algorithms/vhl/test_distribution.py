"""Virtual data reach every client once, by seed or as bytes, and nobody trains on others than the server's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farshore.algorithms.vhl.config import Virtual
from farshore.algorithms.vhl.distribution import Distribution
from farshore.algorithms.vhl.virtual import VirtualData
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError, DataError
from farshore.core.message import Message, Tensor
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.federated.assets import offer_message
from farshore.runs.checkpoints import CheckpointStore
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")

NODES = ("a", "b", "c")
SMALL: dict[str, Any] = {"rounds": 2, "per_round": 3, "local_epochs": 1, "batch": 256, "eval_every": 2}
SMALL |= {"partition": {"kind": "iid"}}


pytestmark = pytest.mark.usefixtures("one_thread")


def config(rounds: int = 2, **virtual: Any) -> Any:
    return WORKLOAD.config.model_validate(
        {**SMALL, "rounds": rounds, "virtual": {"per_class": 4, "batch": 8, **virtual}}
    )


def run(path: Path, settings: Any) -> list[Transfer]:
    rows: list[Transfer] = []
    InProcessRun(WORKLOAD, settings, path, NODES, seed=3, recorder=rows.append).run()
    return rows


def sent(rows: list[Transfer]) -> list[str]:
    return sorted(row.node for row in rows if row.kind == "virtual")


def state(path: Path, step: int = 2) -> dict[str, Any]:
    return CheckpointStore(path / "server").load(step)[0]


def program(folder: Path, **virtual: Any) -> Distribution:
    task: Any = WORKLOAD.task(config(**virtual), Seed(3), Path, 3)
    made = WORKLOAD.assets(config(**virtual), task, folder, f"node {folder.name}")
    assert isinstance(made, Distribution)
    return made


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the second time on virtual data come out with another last bit, as networks make them elsewhere."""
    real, made = VirtualData.from_recipe, []

    def from_recipe(recipe: Any, **more: Any) -> VirtualData:
        data = real(recipe, **more)
        made.append(data)
        if len(made) == 1:
            return data
        images = data.images.clone()
        images[0, 0, 0, 0] ^= 1
        return VirtualData(images, recipe)

    return lambda: monkeypatch.setattr(VirtualData, "from_recipe", from_recipe)


def test_noise_is_made_and_what_networks_make_is_shipped_unless_told_otherwise() -> None:
    assert [Virtual(generator=g).ships for g in ("upsampled_noise", "conv_decoder", "stylegan2")] == [False, True, True]
    assert Virtual(distribution="ship").ships
    assert not Virtual(generator="stylegan2", distribution="seed").ships


def test_both_ways_give_the_same_bits_and_bytes_cross_only_in_one(tmp_path: Path) -> None:
    assert sent(run(tmp_path / "seed", config())) == []
    assert sent(run(tmp_path / "ship", config(distribution="ship"))) == list(NODES)
    seeded, shipped = state(tmp_path / "seed"), state(tmp_path / "ship")
    assert all(np.array_equal(seeded[n], shipped[n]) for n in seeded)
    without = WORKLOAD.config.model_validate({**SMALL, "virtual": {"enabled": False}})
    assert not [row for row in run(tmp_path / "off", without) if row.kind == "control" and row.round == 1]


def test_nodes_that_make_other_data_by_the_seed_are_sent_the_servers(
    tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    run(tmp_path / "ship", config(distribution="ship"))
    other_machine()
    assert sent(run(tmp_path / "seed", config())) == list(NODES)
    expected, got = state(tmp_path / "ship"), state(tmp_path / "seed")
    assert all(np.array_equal(expected[n], got[n]) for n in expected)


def test_a_run_that_goes_on_finds_what_was_shipped(tmp_path: Path) -> None:
    settings = config(distribution="ship")
    assert sent(run(tmp_path / "run", settings)) == list(NODES)
    more = config(rounds=4, distribution="ship")
    assert sent(run(tmp_path / "run", more)) == []
    run(tmp_path / "whole", more)
    whole, resumed = state(tmp_path / "whole", 4), state(tmp_path / "run", 4)
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


def test_a_damaged_copy_is_sent_again(tmp_path: Path) -> None:
    server, node = program(tmp_path / "server", distribution="ship"), program(tmp_path / "a", distribution="ship")
    words = dict(offer_message(server, 1).fields)
    assert not node.has(words)
    node.accept(server.payload(1))
    assert program(tmp_path / "a", distribution="ship").has(words)
    (kept,) = (tmp_path / "a").iterdir()
    for damage in (kept.read_bytes()[:-1], b"\1" + kept.read_bytes()[1:]):
        kept.write_bytes(damage)
        assert not program(tmp_path / "a", distribution="ship").has(words)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda t: {**t, "images": Tensor(t["images"].array ^ np.uint8(1))},
            "node a was sent other virtual data .* digest",
        ),
        (lambda t: {**t, "images": Tensor(t["images"].array[1:])}, "node a was sent other virtual data .* recipe says"),
        (lambda t: {**t, "images": Tensor(t["images"].array.astype(np.float32))}, "node a was sent other virtual data"),
        (lambda t: {**t, "labels": Tensor(t["labels"].array[::-1])}, "node a was sent virtual data whose labels"),
        (lambda t: {"images": t["images"]}, r"node a was sent \['images'\] instead of virtual images and labels"),
    ],
)
def test_what_is_not_what_was_offered_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], why: str
) -> None:
    server, node = program(tmp_path / "server", distribution="ship"), program(tmp_path / "a", distribution="ship")
    assert not node.has(server.manifest())
    goods = server.payload(1)
    with pytest.raises(DataError, match=why):
        node.accept(replace(goods, tensors=spoil(dict(goods.tensors))))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"recipe": "{}"}, "its own is"),
        ({"recipe": "x"}, "without a recipe"),
        ({"digest": "../../../etc/passwd"}, "whose digest is none"),
        ({"digest": "A" * 64}, "whose digest is none"),
    ],
)
def test_an_offer_that_makes_no_sense_is_refused(tmp_path: Path, words: dict[str, Any], why: str) -> None:
    node = program(tmp_path / "a")
    with pytest.raises(DataError, match=f"node a was offered.*{why}"):
        node.has({**program(tmp_path / "server").manifest(), **words})


def test_a_digest_that_does_not_fit_ends_the_run_with_the_nodes_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Distribution.payload

    def spoilt(self: Distribution, number: int) -> Message:
        goods = real(self, number)
        return replace(goods, tensors={**goods.tensors, "images": Tensor(goods.array("images") ^ np.uint8(1))})

    monkeypatch.setattr(Distribution, "payload", spoilt)
    with pytest.raises(DataError, match=r"node . was sent other virtual data than were offered"):
        run(tmp_path / "run", config(distribution="ship"))


def test_more_than_a_frame_takes_is_refused_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farshore.algorithms.vhl.distribution.DEFAULT", type("Small", (), {"payload_bytes": 2599}))
    with pytest.raises(ConfigError, match=r"2,600 bytes are more than the 2,599 .*distribution=seed"):
        program(tmp_path / "server", distribution="ship").manifest()


def test_what_a_worker_maps_is_one_file_and_checked(tmp_path: Path) -> None:
    server = program(tmp_path, distribution="ship")
    path = server.save()
    worker = program(tmp_path, distribution="ship")
    worker.load(path)
    assert any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="does not hold the virtual data of this run"):
        program(tmp_path, distribution="ship").load(path)
