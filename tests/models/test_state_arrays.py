"""Conversion of a module and its optimizer to named arrays and back is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.errors import StorageError
from farshore.models.state_arrays import from_arrays, to_arrays


def _trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("prefix", ["optimizer.", "optimiser."])  # old checkpoints have the second
def test_training_continues_with_the_same_bits(prefix: str) -> None:
    (model, optimizer), (other, others) = _trained(1), _trained(2)
    saved = to_arrays(model, optimizer)
    arrays = {n.replace("optimizer.", prefix, 1) if n.startswith("optimizer.") else n: a for n, a in saved.items()}
    assert arrays.keys() == saved.keys() or prefix == "optimiser."
    from_arrays({**arrays, "factors.0": next(iter(saved.values()))}, other, others)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for m, o in ((model, optimizer), (other, others)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(("fused", "counts"), [(False, "cpu"), (True, "lazy")])
def test_optimizer_state_goes_to_the_device_of_its_parameter(fused: bool, counts: str, simulated_device: Any) -> None:
    arrays = to_arrays(*_trained(1))
    model, _ = _trained(2)
    with simulated_device():
        model.to("lazy")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["fused"] = fused
        from_arrays(arrays, model, optimizer)
        places = {slot: t.device.type for state in optimizer.state.values() for slot, t in state.items()}
        assert places == {"step": counts, "exp_avg": "lazy", "exp_avg_sq": "lazy"}
        back = to_arrays(model, optimizer)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


def test_the_state_of_another_model_is_refused() -> None:
    model, optimizer = _trained(1)
    with pytest.raises(StorageError, match="another model"):
        from_arrays(to_arrays(nn.Linear(3, 4)), model, optimizer)
