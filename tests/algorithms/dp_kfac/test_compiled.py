"""A compiled model is preconditioned as the plain one is, or refused with a cure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from farshore.algorithms.dp_kfac.preconditioner import DPKFAC
from farshore.core.errors import ConfigError

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("one_thread")]

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (8,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def gradients(kfac: DPKFAC, call: Any, model: nn.Module, steps: int = 4) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(call(X), Y).backward()
        kfac.step()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
    return found


def expected() -> list[Tensor]:
    model = net()
    return gradients(DPKFAC(model, lr=0.1, inv_steps=2), model, model)


@pytest.mark.parametrize("given", ["plain", "compiled"])
def test_gradients_and_names_are_those_of_the_plain_model(group: None, given: str) -> None:
    model = net()
    call = compiled(model)
    kfac = DPKFAC(model if given == "plain" else call, lr=0.1, inv_steps=2)
    assert sorted(kfac.owners) == ["0", "2"]
    for found, wanted in zip(gradients(kfac, call, model), expected(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_ddp_around_the_compiled_model_is_the_same_model(group: None) -> None:
    model = net()
    ddp = DistributedDataParallel(compiled(model))
    kfac = DPKFAC(model, lr=0.1, inv_steps=2)
    kfac.attach_ddp(ddp)
    for found, wanted in zip(gradients(kfac, ddp, model), expected(), strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ConfigError, match="wraps another model"):
        kfac.attach_ddp(DistributedDataParallel(compiled(net())))


def test_a_model_that_was_called_before_is_refused_until_the_compiler_is_reset(group: None) -> None:
    model = net()
    call = compiled(model)
    call(X)
    kfac = DPKFAC(model, lr=0.1, inv_steps=2)
    with pytest.raises(ConfigError, match="has seen no forward pass") as caught:
        gradients(kfac, call, model)
    assert "torch.compiler.reset()" in str(caught.value.hint)
    torch.compiler.reset()
    for found, wanted in zip(gradients(kfac, call, model), expected(), strict=True):
        torch.testing.assert_close(found, wanted)
