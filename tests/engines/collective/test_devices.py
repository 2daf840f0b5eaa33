"""Collectives on tensors of a second device: the same results as on the CPU, in the tensors on that device."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from farshore.core.errors import WireError
from farshore.core.message import Message
from farshore.engines.collective import gloo_backend, star_backend, tensors
from farshore.engines.collective.dry_run import dry_rank
from farshore.engines.collective.gloo_backend import GlooGroup
from farshore.engines.collective.star_backend import StarGroup
from farshore.engines.collective.star_client import StarClient
from farshore.engines.collective.tensors import HostCopies
from farshore.models.torch_internals import HashStore, ProcessGroupGloo
from farshore.wire.memory import pair
from tests.engines.collective.second_device import FarTensor, far
from tests.engines.collective.test_star import Star, options

RANKS = 2


@pytest.fixture(autouse=True)
def synchronized(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that were synchronized: there is none here that torch could wait for."""
    found: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", found.append)
    return found


@pytest.fixture
def star_groups() -> Iterator[list[Any]]:
    star = Star(RANKS)
    yield star.groups
    star.close()


@pytest.fixture
def gloo_groups() -> list[Any]:
    store, made = HashStore(), [None] * RANKS

    def make(rank: int) -> GlooGroup:
        gloo = ProcessGroupGloo(store, rank, RANKS, datetime.timedelta(seconds=30))
        return GlooGroup(gloo, rank, RANKS)

    return on_each(made, lambda _, rank: make(rank))


def on_each(groups: list[Any], do: Callable[[Any, int], Any]) -> list[Any]:
    """Call ``do(group, rank)`` on every rank at once; return the results by rank."""
    results: list[Any] = [None] * len(groups)

    def run(rank: int) -> None:
        results[rank] = do(groups[rank], rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def collectives(group: Any, rank: int, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run every collective on tensors that ``place`` puts on their device; return the tensors that have results."""
    own = place(torch.arange(6.0).view(2, 3) + 10 * rank)
    across = place((torch.arange(6.0).view(3, 2) + 10 * rank).T)  # not contiguous
    whole = place(torch.arange(4) + rank)
    root = place(torch.tensor([rank + 1.0]))
    gathered = [place(torch.zeros(2)) for _ in range(RANKS)]
    exchanged = place(torch.zeros(RANKS * (rank + 1)))
    received = place(torch.zeros(3))
    group.allreduce([own]).wait()
    group.allreduce([across]).get_future().wait()
    group.allreduce_coalesced([whole]).wait()
    group.broadcast([root], dist_options(dist.BroadcastOptions, rootRank=1)).wait()
    group.allgather([gathered], [place(torch.tensor([rank, 5.0 * rank]))]).wait()
    # Rank r receives r + 1 elements from each rank.
    given = place(torch.arange(3.0) + 10 * rank)
    group.alltoall_base(exchanged, given, [rank + 1] * RANKS, [1, 2]).wait()
    if rank == 0:
        group.send([place(torch.tensor([7.0, 8.0, 9.0]))], 1, 0).wait()
    else:
        group.recv([received], 0, 0).wait()
    reduced = place(torch.tensor([rank + 1.0]))
    group.reduce([reduced], dist_options(dist.ReduceOptions, rootRank=0)).wait()
    results = [own, across, whole, root, *gathered, exchanged, received]
    return [*results, reduced] if rank == 0 else results


def dist_options(kind: Any, **values: Any) -> Any:
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("transport", ["star", "gloo"])
def test_results_are_those_of_the_cpu_and_lie_on_the_device(
    transport: str, request: pytest.FixtureRequest, synchronized: list[torch.device]
) -> None:
    groups = request.getfixturevalue(f"{transport}_groups")
    expected = on_each(groups, lambda group, rank: collectives(group, rank, torch.clone))
    assert not synchronized
    found = on_each(groups, lambda group, rank: collectives(group, rank, far))
    for rank in range(RANKS):
        assert len(found[rank]) == len(expected[rank])
        for far_tensor, near in zip(found[rank], expected[rank], strict=True):
            assert isinstance(far_tensor, FarTensor)
            assert torch.equal(far_tensor.cpu(), near)
    assert set(synchronized) == {far(torch.zeros(1)).device}


@pytest.mark.parametrize("transport", ["star", "gloo"])
def test_the_future_of_a_collective_has_its_tensors_on_the_device(
    transport: str, request: pytest.FixtureRequest
) -> None:
    def reduce(group: Any, rank: int) -> tuple[Tensor, Tensor]:
        tensor = far(torch.tensor([rank + 1.0]))
        (result,) = group.allreduce([tensor]).get_future().then(lambda done: done.value()).wait()
        return tensor, result

    for tensor, result in on_each(request.getfixturevalue(f"{transport}_groups"), reduce):
        assert isinstance(result, FarTensor)
        assert float(tensor.cpu()) == float(result.cpu()) == 3.0


def test_results_are_copied_to_the_device_once(gloo_groups: list[Any]) -> None:
    def reduce(group: Any, rank: int) -> float:
        tensor = far(torch.tensor([rank + 1.0]))
        work = group.allreduce([tensor])
        work.wait()
        tensor.zero_()
        work.wait()
        assert work.is_completed()
        return float(tensor.cpu())

    assert on_each(gloo_groups, reduce) == [0.0, 0.0]


def test_tensors_of_the_cpu_are_used_as_they_are() -> None:
    copies, tensor = HostCopies(), torch.zeros(3, 2).T
    assert copies.source(tensor) is tensor
    assert copies.target(tensor) is tensor
    work = star_backend.completed([tensor])
    assert copies.follow(work) is work


def test_the_bytes_sent_are_counted_for_tensors_of_a_device(gloo_groups: list[Any]) -> None:
    counted = []
    for place in (torch.clone, far):
        gloo_backend.drain_counters()
        on_each(gloo_groups, lambda group, rank, place=place: collectives(group, rank, place))
        counted.append({kind: one.bytes for kind, one in gloo_backend.drain_counters().items()})
    assert counted[0] == counted[1]
    assert counted[0]["all_reduce"] > 0


def test_a_reply_that_does_not_fit_is_an_error_of_the_server() -> None:
    server, node = pair("a")
    client = StarClient(node)
    client.start_generation(1)
    group = StarGroup(client, "g", 0, 2, range(2))
    for sent in ({"0": torch.zeros(3)}, {}):
        work = group.allreduce([far(torch.zeros(2))], options(reduceOp=dist.ReduceOp.SUM))
        request = server.receive(10)
        packed = {name: tensors.to_wire(tensor) for name, tensor in sent.items()}
        fields = {"group": "g", "generation": 1}
        server.send(Message("all_reduce", micro=request.micro, tensors=packed, fields=fields))
        with pytest.raises(WireError, match="the server: a reply does not fit"):
            work.wait()
    server.close()


@pytest.mark.parametrize("transport", ["star", "peers"])
def test_a_dry_run_takes_tensors_of_a_device(transport: Any) -> None:
    def sent(place: Callable[[Tensor], Tensor]) -> Any:
        with dry_rank(transport, 0, 2) as drain:
            group = dist.group.WORLD
            assert group is not None
            group.allreduce([place(torch.ones(5))]).wait()
            group.allgather([[place(torch.zeros(2)), place(torch.zeros(2))]], [place(torch.ones(2))]).wait()
            return drain()

    near, away = sent(torch.clone), sent(far)
    if transport == "peers":
        assert near == away
        assert near["all_reduce"] > 0
    else:
        assert [(m.kind, m.fields, [t.array.shape for t in m.tensors.values()]) for m in near] == [
            (m.kind, m.fields, [t.array.shape for t in m.tensors.values()]) for m in away
        ]


@pytest.mark.parametrize("name", ["star", "peers"])
def test_the_backends_are_registered_for_accelerators(name: str) -> None:
    server, node = pair("a")
    gloo_backend.register()
    star_backend.register(StarClient(node))
    assert dist.Backend.backend_capability[name] == ["cpu", "cuda", "mps"]
    server.close()
