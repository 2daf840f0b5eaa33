"""Virtual data reach every client once, by seed or as bytes, and every client trains on the server's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farshore.algorithms.vhl.config import Virtual
from farshore.algorithms.vhl.distribution import Distribution
from farshore.algorithms.vhl.virtual import VirtualData
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import DataError
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.assets.asset import Asset, MemorySource
from farshore.engines.assets.cache import AssetCache
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


def run(path: Path, settings: Any, cache: Path | None = None) -> list[Transfer]:
    rows: list[Transfer] = []
    InProcessRun(WORKLOAD, settings, path, NODES, seed=3, cache=cache, recorder=rows.append).run()
    return rows


def recipients(rows: list[Transfer]) -> list[str]:
    """Nodes to which virtual data were sent."""
    return sorted(row.node for row in rows if row.kind == "asset")


def state(path: Path, step: int = 2) -> dict[str, Any]:
    return CheckpointStore(path / "server").load(step)[0]


def program(**virtual: Any) -> Distribution:
    task: Any = WORKLOAD.task(config(**virtual), Seed(3), Path, 3)
    made = WORKLOAD.assets(config(**virtual), task)
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


def test_a_later_run_of_the_same_nodes_receives_nothing(tmp_path: Path) -> None:
    settings = config(distribution="ship")
    assert recipients(run(tmp_path / "one", settings, tmp_path / "cache")) == list(NODES)
    assert recipients(run(tmp_path / "two", settings, tmp_path / "cache")) == []
    assert recipients(run(tmp_path / "three", settings, tmp_path / "other")) == list(NODES)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert all(np.array_equal(one[n], two[n]) for n in one)


def test_a_damaged_copy_of_a_node_is_received_again(tmp_path: Path) -> None:
    settings = config(distribution="ship")
    run(tmp_path / "one", settings, tmp_path / "cache")
    (stored,) = (path for path in (tmp_path / "cache" / "b" / "assets").iterdir() if len(path.name) == 64)
    stored.write_bytes(b"\1" + stored.read_bytes()[1:])
    assert recipients(run(tmp_path / "two", settings, tmp_path / "cache")) == ["b"]


def test_data_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the server's virtual data have 2,559 bytes, but those of this run have 2,560"
    ):
        program().use(Asset.unknown(2559, "virtual images"), AssetCache(tmp_path))


def test_a_digest_mismatch_ends_the_run_with_an_error_that_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemorySource.read
    monkeypatch.setattr(MemorySource, "read", lambda self, *span: real(self, *span) ^ np.uint8(1))
    with pytest.raises(DataError, match=r"node '.': the server sent content of 'virtual images' that differs"):
        run(tmp_path / "run", config(distribution="ship"))


def test_workers_map_one_file_and_check_it(tmp_path: Path) -> None:
    (source,), cache = program(distribution="ship").sources(), AssetCache(tmp_path)
    cache.add(source.asset, source.read(0, source.asset.size))
    worker, path = program(distribution="ship"), tmp_path / source.asset.digest
    assert worker.use(source.asset, cache)
    assert any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())
    path.write_bytes(bytes(path.stat().st_size))
    assert not program(distribution="ship").use(source.asset, cache)
