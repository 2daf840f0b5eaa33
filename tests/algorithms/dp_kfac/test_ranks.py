"""DP-KFAC on four processes that communicate with gloo: schemes, byte counters, lost ranks, saved state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farshore.algorithms.dp_kfac.layers import find_layers
from farshore.algorithms.dp_kfac.volumes import Scheme, sgd_volume, state_elements, step_volume
from farshore.models.mlp import perceptron

pytestmark = pytest.mark.process

SMALL = perceptron((6, 5, 5, 4, 3))
LAYERS, _ = find_layers(SMALL)
PARAMETERS = sum(p.numel() for p in SMALL.parameters())
#: Settings of the schemes that compute the same if all ranks see the same batch.
SCHEMES: dict[str, dict[str, Any]] = {
    "dp": {},
    "dp, owner": {"grad_exchange": "owner"},
    "dp, owner, by reduce": {"grad_exchange": "owner", "exchange_way": "reduce"},
    "reduce": {"factor_source": "reduce"},
    "allreduce": {"factor_source": "allreduce"},
    "mem_opt": {"strategy": "mem_opt"},
    "mem_opt, symmetric": {"strategy": "mem_opt", "symmetry_aware": True},
    "hybrid": {"strategy": "hybrid"},
    "comm_opt": {"strategy": "comm_opt"},
    "comm_opt, symmetric": {"strategy": "comm_opt", "symmetry_aware": True},
}
#: All schemes, also those that compute something else.
ALL = {**SCHEMES, "comm_opt, Cholesky": {"strategy": "comm_opt", "inverse": "cholesky"}}


class Ranks:
    """Four processes that execute the same task at once."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("dp_kfac_ranks.py")
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), "4", str(folder / "store")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(4)
        ]

    def __call__(self, task: str, **settings: Any) -> list[Any]:
        """Run a task on all ranks; return the results in rank order, without those of ranks that took no part."""
        for process in self._processes:
            process.stdin.write(json.dumps({"task": task, "settings": settings}) + "\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        if errors := [answer["error"] for answer in answers if "error" in answer]:
            pytest.fail(errors[0])
        return [answer["result"] for answer in answers if answer["result"] is not None]

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        for line in process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        pytest.fail("a rank exited")

    def close(self) -> None:
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            process.wait(20)
            process.stdout.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    found = Ranks(tmp_path_factory.mktemp("ranks"))
    yield found
    found.close()


def sent_elements(results: list[Any], *phases: str) -> int:
    """Return the float32 elements that all ranks sent in some phases."""
    sent = sum(result["traffic"].get(phase, {"sent": 0})["sent"] for result in results for phase in phases)
    assert sent % 4 == 0
    return sent // 4


def close(first: list[float], second: list[float], tolerance: float = 1e-5) -> bool:
    return all(abs(a - b) <= tolerance * max(abs(a), 0.05) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_all_ranks_end_with_the_same_bits(ranks: Ranks, name: str, ddp: bool) -> None:
    results = ranks("train", ranks=4, ddp=ddp, model="conv", **ALL[name])
    assert len({result["digest"] for result in results}) == 1
    assert not any(result["counts"] for result in results)


def test_all_schemes_are_equal_on_one_rank(ranks: Ranks) -> None:
    digests = {ranks("train", ranks=1, **settings)[0]["digest"] for settings in SCHEMES.values()}
    assert len(digests) == 1


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "dp"])
def test_schemes_agree_if_all_ranks_see_the_same_batch(ranks: Ranks, name: str) -> None:
    """Local factors then equal global ones, and all ranks compute what one process computes."""
    (alone,) = ranks("train", ranks=1, same=True)
    results = ranks("train", ranks=4, same=True, **SCHEMES[name])
    assert close(results[0]["parameters"], alone["parameters"])


@pytest.mark.parametrize("size", [2, 4])
def test_shared_factors_are_means_of_local_factors(ranks: Ranks, size: int) -> None:
    # Each rank in turn owns all layers, to obtain its local factors.
    names = [layer.name for layer in LAYERS]
    local = []
    for rank in range(size):
        own = ranks("factors", ranks=size, assignment=dict.fromkeys(names, rank))
        assert [bool(found) for found in own] == [r == rank for r in range(size)]
        local.append(own[rank])
    for source in ("reduce", "allreduce"):
        shared = ranks("factors", ranks=size, factor_source=source, assignment=dict.fromkeys(names, 0))
        assert [bool(found) for found in shared] == (
            [True] * size if source == "allreduce" else [True] + [False] * (size - 1)
        )
        for name in names:
            for which in (0, 1):
                flat = [flatten(found[name][which]) for found in local]
                mean = [sum(column) / size for column in zip(*flat, strict=True)]
                assert close(flatten(shared[0][name][which]), mean, 1e-5)
    assert local[0] != local[1]


def flatten(matrix: list[list[float]]) -> list[float]:
    return [value for row in matrix for value in row]


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("algorithm", ["all_to_all", "reduce"])
@pytest.mark.parametrize(("size", "model"), [(2, "conv"), (3, "small"), (4, "two layers")])
def test_owner_exchange_trains_like_all_reduce(ranks: Ranks, size: int, model: str, algorithm: str, ddp: bool) -> None:
    """Including more ranks than layers."""
    common = {"ranks": size, "model": model, "steps": 20, "ddp": ddp}
    expected = ranks("train", **common)
    found = ranks("train", **common, grad_exchange="owner", exchange_way=algorithm)
    for one, other in zip(expected, found, strict=True):
        assert close(one["losses"], other["losses"])
    if model == "two layers":
        assert any(not result["factors"] for result in found)
    assert "scalars" in found[0]["traffic"]
    assert "scalars" not in expected[0]["traffic"]


def test_only_owners_have_factors_hooks_and_inverses(ranks: Ranks) -> None:
    for result in ranks("train", ranks=4, grad_exchange="owner"):
        own = sorted(name for name, owner in result["owners"].items() if owner == result["rank"])
        assert result["factors"] == result["inverses"] == result["hooked"] == own
        expected = state_elements(LAYERS, result["owners"], result["rank"], 4, Scheme(exchange="owner"))
        assert result["memory"]["total"] == 4 * expected


@pytest.mark.parametrize("name", ALL)
def test_byte_counters_equal_the_formulas(ranks: Ranks, name: str) -> None:
    results = ranks("train", ranks=4, steps=3, inv_steps=1, **ALL[name])
    chosen = ALL[name]
    strategy = chosen.get("strategy", "dp")
    scheme = Scheme(
        source=chosen.get("factor_source", "local") if strategy == "dp" else "allreduce",
        workers={"hybrid": 2, "comm_opt": 4}.get(strategy, 1),
        exchange=chosen.get("grad_exchange", "allreduce"),
        symmetric=chosen.get("symmetry_aware", False),
        inverse=chosen.get("inverse", "eigen"),
    )
    expected = step_volume(LAYERS, PARAMETERS, 4, scheme)
    assert sent_elements(results, "gradients") == 3 * expected.gradients
    assert sent_elements(results, "factors") == 3 * expected.factors
    assert sent_elements(results, "inverses") == 3 * expected.inverses
    assert sent_elements(results, "preconditioned") == 3 * expected.preconditioned
    assert sent_elements(results, "scalars") == 2 * 3 * expected.scalars  # float64
    for result in results:
        assert result["memory"]["total"] == 4 * state_elements(LAYERS, result["owners"], result["rank"], 4, scheme)


def test_a_step_with_owner_exchange_sends_as_much_as_sgd(ranks: Ranks) -> None:
    results = ranks("train", ranks=4, steps=1, grad_exchange="owner")
    assert (
        sent_elements(results, "gradients", "factors", "inverses", "preconditioned")
        == sgd_volume(PARAMETERS, 4).gradients
    )


def test_no_factor_enters_a_collective(ranks: Ranks) -> None:
    (first, *_) = ranks("train_spied", ranks=4, steps=2, grad_exchange="owner")
    gradients = sum(elements for name, elements in first["seen"] if name == "all_to_all_single")
    preconditioned = sum(elements for name, elements in first["seen"] if name == "broadcast")
    weights = sum(layer.gradient_elements for layer in LAYERS)
    assert gradients == preconditioned == 2 * weights
    assert [seen for seen in first["seen"] if seen[0] not in ("all_to_all_single", "broadcast")] == [
        ["all_reduce", 1]
    ] * 2
    # Shared factors are recorded, so the spy would have seen them.
    (shared, *_) = ranks("train_spied", ranks=4, steps=1, factor_source="allreduce")
    assert ["all_reduce", sum(layer.factor_elements for layer in LAYERS)] in shared["seen"]


def test_inverses_are_sent_when_due_and_preconditioned_gradients_every_step(ranks: Ranks) -> None:
    results = ranks("train", ranks=4, steps=11, factor_steps=5, inv_steps=10, strategy="hybrid")
    scheme = Scheme("allreduce", 2)
    expected = step_volume(LAYERS, PARAMETERS, 4, scheme)
    assert sent_elements(results, "factors") == 3 * expected.factors  # steps 0, 5, 10
    assert sent_elements(results, "inverses") == 2 * expected.inverses  # steps 0, 10
    assert sent_elements(results, "preconditioned") == 11 * expected.preconditioned


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("exchange", ["allreduce", "owner"])
def test_accumulated_batches_are_exchanged_once(ranks: Ranks, exchange: str, ddp: bool) -> None:
    whole = ranks("train", ranks=4, batch=16, ddp=ddp, grad_exchange=exchange)
    parts = ranks("train", ranks=4, batch=16, ddp=ddp, grad_exchange=exchange, accumulation_steps=4)
    assert close(whole[0]["parameters"], parts[0]["parameters"], 1e-3)
    assert {phase: t["sent"] for phase, t in whole[1]["traffic"].items()} == {
        phase: t["sent"] for phase, t in parts[1]["traffic"].items()
    }


@pytest.mark.parametrize("inverse", ["eigen", "cholesky"])
@pytest.mark.parametrize("source", ["consolidated", "merged"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_saved_state_resumes_on_another_number_of_ranks(ranks: Ranks, size: int, source: str, inverse: str) -> None:
    settings = {"inverse": inverse, "inv_steps": 4, "factor_steps": 2, "same": True}
    (expected, *_) = ranks("train", ranks=4, steps=5, **settings)
    (found, *_) = ranks("resume", ranks=size, saved_by=4, source=source, **settings)
    tolerance = 0.0 if size == 4 else 1e-5
    assert close(found["parameters"], expected["parameters"], tolerance)


@pytest.mark.parametrize("name", ["dp", "dp, owner", "reduce", "allreduce", "comm_opt"])
def test_layers_of_a_lost_owner_get_new_owners(ranks: Ranks, name: str) -> None:
    results = ranks("reassign", alive=[0, 1, 3], factor_steps=10, inv_steps=10, **SCHEMES[name])
    assert len({result["digest"] for result in results}) == 1
    owners, before = results[0]["owners"], results[0]["before"]
    new_rank = {0: 0, 1: 1, 3: 2}
    assert all(owners[layer] == new_rank[owner] for layer, owner in before.items() if owner != 2)
    assert any(owner == 2 for owner in before.values())
    # The lost layers have factors again, before the next regular update at step 10.
    assert set(owners) == {layer for result in results for layer in result["factors"]}
    assert set(owners) == {layer for result in results for layer in result["inverses"]}


@pytest.mark.parametrize("inverse", ["eigen", "cholesky"])
@pytest.mark.parametrize("name", ["dp", "dp, owner", "reduce", "allreduce", "hybrid", "comm_opt"])
def test_new_ranks_get_the_state_of_their_layers_from_other_ranks(ranks: Ranks, name: str, inverse: str) -> None:
    settings = {"inverse": inverse, "inv_steps": 4, "factor_steps": 2, **SCHEMES[name]}
    (expected, *_) = ranks("train", ranks=4, steps=5, same=True, **settings)
    results = ranks("redistribute", saved_by=[0, 1], ranks=[0, 1, 2, 3], **settings)
    assert len({result["digest"] for result in results}) == 1
    assert close(results[0]["parameters"], expected["parameters"], 1e-5)
    assert not all(result["held"] for result in results)


@pytest.mark.parametrize("name", ["dp", "reduce", "allreduce"])
def test_remaining_ranks_keep_the_state_of_their_layers(ranks: Ranks, name: str) -> None:
    settings = {"inv_steps": 4, "factor_steps": 4, **SCHEMES[name]}
    results = ranks("redistribute", saved_by=[0, 1, 2, 3], ranks=[0, 1, 3], **settings)
    assert len({result["digest"] for result in results}) == 1
    held = {layer for result in results for layer, tensors in result["held"].items() if tensors}
    had = {layer for result in results for layer, factors in result["before"].items() if factors}
    owners = results[0]["owners"]
    assert had == held
    assert (held == set(owners)) == (name == "allreduce")  # else those of the lost rank are lost
    for result in results if name != "allreduce" else ():
        assert {n for n, found in result["before"].items() if found} == {n for n in held if owners[n] == result["rank"]}
    # Layers without state have factors again, before the next regular update at step 4.
    assert {layer for result in results for layer in result["factors"]} == set(owners)


def test_rotating_owners_move_their_factors_to_the_next_rank(ranks: Ranks) -> None:
    results = ranks("train", ranks=4, steps=4, factor_source="rotate", factor_steps=1, inv_steps=2)
    fixed = ranks("train", ranks=4, steps=4)
    assert results[0]["owners"] == {name: (owner + 2) % 4 for name, owner in fixed[0]["owners"].items()}
    assert len({result["digest"] for result in results}) == 1
    for result in results:
        assert result["factors"] == [n for n, owner in sorted(result["owners"].items()) if owner == result["rank"]]
    assert sent_elements(results, "rotated") == 2 * sum(layer.factor_elements for layer in LAYERS)


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("exchange", ["allreduce", "owner"])
def test_sampled_labels_differ_by_rank_and_cost_no_traffic(ranks: Ranks, exchange: str, ddp: bool) -> None:
    settings = {"ddp": ddp, "grad_exchange": exchange, "same": True}
    true = ranks("train", ranks=4, **settings)
    sampled = ranks("train", ranks=4, fisher="mc1", **settings)
    assert len({result["digest"] for result in sampled}) == 1
    assert sampled[0]["digest"] != true[0]["digest"]
    assert [result["traffic"] for result in sampled] == [result["traffic"] for result in true]
    # All ranks see one batch. With true labels an owner's factors equal the mean over ranks; with sampled labels they
    # do not, since each rank samples its own.
    shared = {**settings, "factor_source": "allreduce"}
    assert close(ranks("train", ranks=4, **shared)[0]["parameters"], true[0]["parameters"], 1e-4)
    assert not close(ranks("train", ranks=4, fisher="mc1", **shared)[0]["parameters"], sampled[0]["parameters"], 1e-3)


def test_rounded_gradients_are_equal_on_owner_and_receivers(ranks: Ranks) -> None:
    results = ranks("train", ranks=4, steps=3, grad_exchange="owner", bcast_dtype="bfloat16")
    assert len({result["digest"] for result in results}) == 1
    whole = ranks("train", ranks=4, steps=3, grad_exchange="owner")
    assert results[0]["digest"] != whole[0]["digest"]
    sent = [sum(result["traffic"]["preconditioned"]["sent"] for result in some) for some in (results, whole)]
    assert 2 * sent[0] == sent[1]
