"""Virtual data reach every client once, by seed or as bytes, and every client trains on the server's data."""

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


def recipients(rows: list[Transfer]) -> list[str]:
    """Nodes to which virtual data were sent."""
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
    """From the second generation on, virtual data differ in one bit, as those of networks do on another machine."""
    real, generated = VirtualData.from_recipe, []

    def from_recipe(recipe: Any, **more: Any) -> VirtualData:
        data = real(recipe, **more)
        generated.append(data)
        if len(generated) == 1:
            return data
        images = data.images.clone()
        images[0, 0, 0, 0] ^= 1
        return VirtualData(images, recipe)

    return lambda: monkeypatch.setattr(VirtualData, "from_recipe", from_recipe)


def test_by_default_noise_is_distributed_by_seed_and_network_images_are_shipped() -> None:
    assert [Virtual(generator=g).ships for g in ("upsampled_noise", "conv_decoder", "stylegan2")] == [False, True, True]
    assert Virtual(distribution="ship").ships
    assert not Virtual(generator="stylegan2", distribution="seed").ships


def test_seed_and_ship_give_the_same_bits_and_only_ship_sends_data(tmp_path: Path) -> None:
    assert recipients(run(tmp_path / "seed", config())) == []
    assert recipients(run(tmp_path / "ship", config(distribution="ship"))) == list(NODES)
    seeded, shipped = state(tmp_path / "seed"), state(tmp_path / "ship")
    assert all(np.array_equal(seeded[n], shipped[n]) for n in seeded)
    without = WORKLOAD.config.model_validate({**SMALL, "virtual": {"enabled": False}})
    assert not [row for row in run(tmp_path / "off", without) if row.kind == "control" and row.round == 1]


def test_nodes_whose_generated_data_have_another_digest_receive_the_servers_data(
    tmp_path: Path, other_machine: Callable[[], None]
) -> None:
    run(tmp_path / "ship", config(distribution="ship"))
    other_machine()
    assert recipients(run(tmp_path / "seed", config())) == list(NODES)
    expected, got = state(tmp_path / "ship"), state(tmp_path / "seed")
    assert all(np.array_equal(expected[n], got[n]) for n in expected)


def test_a_resumed_run_finds_the_shipped_data(tmp_path: Path) -> None:
    settings = config(distribution="ship")
    assert recipients(run(tmp_path / "run", settings)) == list(NODES)
    more = config(rounds=4, distribution="ship")
    assert recipients(run(tmp_path / "run", more)) == []
    run(tmp_path / "whole", more)
    whole, resumed = state(tmp_path / "whole", 4), state(tmp_path / "run", 4)
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


def test_a_damaged_stored_copy_is_not_used(tmp_path: Path) -> None:
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
    ("corrupt", "message"),
    [
        (
            lambda t: {**t, "images": Tensor(t["images"].array ^ np.uint8(1))},
            "node a received virtual data that differ .* digest",
        ),
        (
            lambda t: {**t, "images": Tensor(t["images"].array[1:])},
            "node a received virtual data that differ .* recipe says",
        ),
        (
            lambda t: {**t, "images": Tensor(t["images"].array.astype(np.float32))},
            "node a received virtual data that differ",
        ),
        (lambda t: {**t, "labels": Tensor(t["labels"].array[::-1])}, "node a received virtual data whose labels"),
        (lambda t: {"images": t["images"]}, r"node a received \['images'\] instead of virtual images and labels"),
    ],
)
def test_data_that_differ_from_the_offer_are_refused_with_the_nodes_name(
    tmp_path: Path, corrupt: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    server, node = program(tmp_path / "server", distribution="ship"), program(tmp_path / "a", distribution="ship")
    assert not node.has(server.manifest())
    goods = server.payload(1)
    with pytest.raises(DataError, match=message):
        node.accept(replace(goods, tensors=corrupt(dict(goods.tensors))))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "{}"}, "but this run's is"),
        ({"recipe": "x"}, "without a valid recipe"),
        ({"digest": "../../../etc/passwd"}, "invalid digest"),
        ({"digest": "A" * 64}, "invalid digest"),
    ],
)
def test_an_invalid_offer_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    node = program(tmp_path / "a")
    with pytest.raises(DataError, match=f"node a was offered.*{message}"):
        node.has({**program(tmp_path / "server").manifest(), **changes})


def test_a_digest_mismatch_ends_the_run_with_an_error_that_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Distribution.payload

    def corrupted(self: Distribution, number: int) -> Message:
        goods = real(self, number)
        return replace(goods, tensors={**goods.tensors, "images": Tensor(goods.array("images") ^ np.uint8(1))})

    monkeypatch.setattr(Distribution, "payload", corrupted)
    with pytest.raises(DataError, match=r"node . received virtual data that differ from the offer"):
        run(tmp_path / "run", config(distribution="ship"))


def test_data_that_exceed_a_frame_are_refused_before_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farshore.algorithms.vhl.distribution.DEFAULT", type("Small", (), {"payload_bytes": 2599}))
    with pytest.raises(ConfigError, match=r"2,600 bytes, more than the 2,599 .*distribution=seed"):
        program(tmp_path / "server", distribution="ship").manifest()


def test_workers_map_one_file_and_check_it(tmp_path: Path) -> None:
    server = program(tmp_path, distribution="ship")
    path = server.save()
    worker = program(tmp_path, distribution="ship")
    worker.load(path)
    assert any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="does not hold the virtual data of this run"):
        program(tmp_path, distribution="ship").load(path)
