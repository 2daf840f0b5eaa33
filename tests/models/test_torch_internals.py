"""What farshore relies on in torch's private modules; a new release of torch that breaks it fails here first."""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from farshore.models import torch_internals as internals

distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def _lists() -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=draw) for n in (1, 4, 7)], [torch.randn(n, generator=draw) for n in (1, 4, 7)]


def test_each_operation_has_the_bits_of_the_plain_one() -> None:
    a, b = _lists()
    sums, differences = internals.added_each(a, b), internals.subtracted_each(a, b)
    assert all(torch.equal(s, x + y) for s, x, y in zip(sums, a, b, strict=True))
    assert all(torch.equal(d, x - y) for d, x, y in zip(differences, a, b, strict=True))
    moved = [x.clone() for x in a]
    internals.add_each(moved, b, alpha=-0.1)
    assert all(torch.equal(m, torch.add(x, y, alpha=-0.1)) for m, x, y in zip(moved, a, b, strict=True))
    internals.scale_each(moved, 0.9)
    assert all(torch.equal(m, torch.add(x, y, alpha=-0.1) * 0.9) for m, x, y in zip(moved, a, b, strict=True))


_SEEN: list[tuple[bool, bool]] = []


class _Asks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, proxy: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        node = ctx.next_functions[1][0]  # type: ignore[attr-defined]
        _SEEN.append((internals.backward_will_run(node), internals.backward_keeps_graph()))
        return gradient * 2, None


def test_a_backward_pass_says_which_nodes_it_runs_and_whether_it_keeps_the_graph() -> None:
    x, proxy = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    _SEEN.clear()
    out = _Asks.apply(x, proxy).sum()
    out.backward(retain_graph=True)
    torch.autograd.grad(out, [x])
    assert _SEEN == [(True, True), (False, False)]


def test_norms_and_dropouts_of_all_kinds_are_recognized() -> None:
    norms = (nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2))
    assert all(isinstance(layer, internals.BatchNormBase) for layer in norms)
    assert isinstance(nn.InstanceNorm2d(2, track_running_stats=True), internals.NormBase)
    assert not isinstance(nn.GroupNorm(1, 2), internals.NormBase)
    assert all(isinstance(d, internals.DropoutBase) for d in (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()))


@distributed
def test_a_gloo_group_can_be_made_without_the_global_one() -> None:
    store, timeout = internals.HashStore(), datetime.timedelta(seconds=30)

    def total(rank: int) -> float:
        options = internals.gloo_options("127.0.0.1", timeout)
        group = internals.ProcessGroupGloo(store, rank, 2, options)
        tensor = torch.ones(1)
        group.allreduce([tensor]).wait()
        return float(tensor)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(total, range(2))) == [2.0, 2.0]


@distributed
def test_stores_work_and_options_can_be_subclassed_or_made() -> None:
    class OwnStore(internals.Store):
        pass

    class OwnWork(internals.Work):
        pass

    assert isinstance(OwnStore(), internals.Store)
    assert isinstance(OwnWork(), internals.Work)
    for options in ("Allgather", "Allreduce", "AllreduceCoalesced", "AllToAll", "Barrier", "Broadcast"):
        getattr(internals, f"{options}Options")()
    assert internals.GradBucket is torch.distributed.GradBucket


class _Alone(torch.distributed.ProcessGroup):
    """A group whose collectives nobody calls."""

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "alone"


def _register() -> None:
    if not hasattr(torch.distributed.Backend, "ALONE"):
        torch.distributed.Backend.register_backend(
            "alone", lambda options, _: _Alone(options.group_rank, options.group_size), True, ["cpu"]
        )


@distributed
def test_torch_keeps_the_state_of_process_groups_in_the_fields_that_a_rank_has_of_its_own() -> None:
    kept = {name for name, value in vars(distributed_c10d._World).items() if isinstance(value, property)}
    derived = {"pg_config_info"}
    assert {field.name for field in dataclasses.fields(internals._ProcessGroups)} == kept - derived


@distributed
def test_threads_with_own_process_groups_are_ranks_and_leave_the_process_without_a_trace() -> None:
    _register()
    world, hook, all_in = distributed_c10d._world, sys.excepthook, threading.Barrier(3)

    def rank(number: int) -> list[int]:
        with internals.own_process_groups():
            torch.distributed.init_process_group("alone", store=internals.HashStore(), rank=number, world_size=3)
            all_in.wait(10)
            # A thread with a copy of the context, as one that runs callbacks, is of the same rank.
            context, seen = contextvars.copy_context(), [torch.distributed.get_rank()]
            helper = threading.Thread(target=lambda: seen.append(context.run(torch.distributed.get_rank)))
            helper.start()
            helper.join()
            group = torch.distributed.new_group([number])
            seen.append(torch.distributed.get_world_size(group))
            all_in.wait(10)
            torch.distributed.destroy_process_group()
        return seen

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(rank, range(3))) == [[0, 0, 1], [1, 1, 1], [2, 2, 1]]
    assert not torch.distributed.is_initialized()
    assert (distributed_c10d._world, sys.excepthook) == (world, hook)


@distributed
def test_the_groups_of_the_process_stay_usable_outside_of_ranks() -> None:
    _register()
    with internals.own_process_groups():
        context = contextvars.Context()
        context.run(torch.distributed.init_process_group, "alone", store=internals.HashStore(), rank=1, world_size=2)
        assert not torch.distributed.is_initialized()
        assert context.run(torch.distributed.get_rank) == 1
    assert torch.distributed.get_rank() == 1
    torch.distributed.destroy_process_group()
