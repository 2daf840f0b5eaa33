"""Row gradients equal torch's own bit for bit, without allocating a table per micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farshore.algorithms.split_fine_tuning.row_gradients import RowGradients


class Texts(nn.Module):
    """Two embedding tables, one with a padding index, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.places = nn.Embedding(6, 8)
        self.layer = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.words(ids) + self.places(torch.arange(ids.shape[1])).tanh())


def micro_batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 12, (4, 6), generator=generator) for _ in range(count)]


def test_gradients_of_one_micro_batch_equal_torchs_bits() -> None:
    plain, rows = Texts(), Texts()
    RowGradients(rows)
    for model in (plain, rows):
        model(micro_batches(1)[0]).square().sum().backward()
    for one, other in zip(plain.parameters(), rows.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert not rows.words.weight.grad[0].any()


def test_twenty_steps_of_several_micro_batches_equal_torchs() -> None:
    plain, rows = Texts(), Texts()
    gradients = RowGradients(rows)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (plain, rows)]
    for step in range(20):
        parts = micro_batches(3 + step)[step : step + 3]
        for model, optimizer in zip((plain, rows), optimizers, strict=True):
            for ids in parts:
                model(ids).square().sum().backward()
            optimizer.step()
        optimizers[0].zero_grad(set_to_none=True)
        gradients.clear()
        assert rows.layer.weight.grad is None
        assert not rows.words.weight.grad.any()
    for one, other in zip(plain.parameters(), rows.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_gradient_table_is_allocated_once() -> None:
    model = Texts()
    gradients = RowGradients(model)
    places = set()
    for ids in micro_batches(4):
        model(ids).sum().backward()
        places.add(model.words.weight.grad.data_ptr())
        gradients.clear()
    assert len(places) == 1


def test_names_values_and_evaluation_do_not_change() -> None:
    model = Texts().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    ids = micro_batches(1)[0]
    with torch.no_grad():
        out = model(ids)
    parameters = list(map(id, model.parameters()))
    RowGradients(model)
    assert list(map(id, model.parameters())) == parameters
    assert model.state_dict().keys() == before.keys()
    assert not model.words.training
    with torch.no_grad():
        assert torch.equal(model(ids), out)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_table_gets_no_gradient(frozen: bool) -> None:
    model = Texts()
    model.words.weight.requires_grad_(not frozen)
    RowGradients(model)
    model(micro_batches(1)[0]).sum().backward()
    assert (model.words.weight.grad is None) == frozen


def test_an_embedding_with_max_norm_is_not_replaced() -> None:
    module = nn.Sequential(nn.Embedding(5, 2, max_norm=1.0))
    RowGradients(module)
    assert type(module[0]) is nn.Embedding
