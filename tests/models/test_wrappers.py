"""Models as people have them: compiled, wrapped, tied, with flags and half-precision buffers, with several outputs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from farshore.core.errors import ConfigError
from farshore.engines.federated.local import Sgd, train
from farshore.engines.federated.methods import FLOATS, INTEGERS, FedAvg
from farshore.engines.federated.model_checkpoints import named_tensors
from farshore.models.flat_params import FlatModel
from farshore.models.state_arrays import from_arrays, to_arrays
from farshore.models.wrappers import aliases, first_tensor, plain_name, unwrap


class Tied(nn.Module):
    """A tiny language model whose output weights are those of its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(ids).mean(1))
        return result


class Odd(nn.Module):
    """Flags, counters and half-precision buffers, one of which changes in training; a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int32))
        self.register_buffer("scale", torch.full((4,), 1.5, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.fill_(True)
            self.calls.add_(1)
            self.scale.mul_(1.25)
        result: Tensor = self.fc(self.frozen(x) * self.scale.float() * self.mask)
        return result


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def trained_state(model: nn.Module, batches: list[Any], objective: Any) -> dict[str, Tensor]:
    """State that the engine saves after training ``model``: what another program loads into the plain module."""
    flat = FlatModel(model)
    start = FedAvg().start(flat)
    flat.load(start[FLOATS], start[INTEGERS])
    train(flat, lambda batch: objective(flat.module, batch), batches, Sgd(0.1))
    state = {FLOATS: flat.floats.numpy().copy(), INTEGERS: flat.integers.numpy().copy()}
    return {name: torch.from_numpy(np.array(array)) for name, array in named_tensors(flat.layout, state).items()}


def plainly_trained(model: nn.Module, batches: list[Any], objective: Any) -> nn.Module:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for batch in batches:
        optimizer.zero_grad()
        objective(model, batch).backward()
        optimizer.step()
    return model


IDS = [torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(k)) for k in range(3)]
XS = [torch.randn(5, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
WRAPS: dict[str, Any] = {
    "plain": lambda module: module,
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "both": lambda module: compiled(nn.DataParallel(module)),
}


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids), ids[:, 0])


def squares(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = model(x).square().mean()
    return result


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(("make", "batches", "objective"), [(Tied, IDS, next_token), (Odd, XS, squares)])
def test_the_saved_state_is_that_of_the_plain_module(wrap: str, make: Any, batches: list[Any], objective: Any) -> None:
    torch.manual_seed(3)
    model = make().train()
    saved = trained_state(WRAPS[wrap](copy.deepcopy(model)), batches, objective)
    expected = plainly_trained(copy.deepcopy(model), batches, objective)
    assert saved.keys() == expected.state_dict().keys()
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(saved)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, msg=name)
    torch.testing.assert_close(loaded.eval()(batches[0]), expected.eval()(batches[0]))


def test_tied_weights_are_sent_once() -> None:
    flat = FlatModel(Tied())
    assert flat.layout.total == 28
    assert flat.layout.aliases == (("head.weight", "embed.weight"),)


def test_buffers_of_other_types_are_loaded_into_the_module() -> None:
    torch.manual_seed(3)
    source, target = FlatModel(Odd().train()), FlatModel(Odd().train())
    source.module(XS[0])
    target.load(source.floats.numpy().copy(), source.integers.numpy().copy())
    same_state(dict(target.module.state_dict()), dict(source.module.state_dict()))
    assert target.module.seen.dtype is torch.bool
    assert bool(target.module.seen)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: nn.LazyLinear(3), "has no shape yet"),
        (lambda: nn.Linear(2, 2).double(), "torch.float64; parameters have to be float32"),
        (lambda: nn.Linear(2, 2).bfloat16(), "parameters have to be float32"),
    ],
)
def test_what_a_flat_model_cannot_hold_is_refused_with_a_cure(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        FlatModel(make())
    assert caught.value.hint


def test_a_complex_buffer_is_refused_unless_it_is_not_saved() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("rotation", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="complex"):
        FlatModel(module)
    del module.rotation
    module.register_buffer("rotation", torch.ones(2, dtype=torch.complex64), persistent=False)
    FlatModel(module)


@pytest.mark.parametrize("wrap", WRAPS)
def test_arrays_of_a_wrapped_module_fit_the_plain_one_and_back(wrap: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).bfloat16()
    model.register_buffer("flag", torch.tensor(True))
    wrapped = WRAPS[wrap](model)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    wrapped(XS[0].bfloat16()).float().square().mean().backward()
    optimizer.step()
    arrays = to_arrays(wrapped, optimizer)
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).bfloat16()
    plain.register_buffer("flag", torch.tensor(False))
    other = torch.optim.AdamW(plain.parameters())
    from_arrays(arrays, plain, other)
    same_state(dict(plain.state_dict()), dict(model.state_dict()))
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[q]["exp_avg"])
    from_arrays(to_arrays(plain, other), wrapped, optimizer)
    assert to_arrays(plain).keys() == {name for name in arrays if name.startswith("model.")}


def test_names_without_wrappers_at_any_depth() -> None:
    inner = nn.Sequential(compiled(nn.Linear(2, 2)), nn.DataParallel(nn.Sequential(nn.Linear(2, 2))))
    root = compiled(inner)
    names = [plain_name(root, name) for name, _ in root.named_parameters()]
    assert names == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert unwrap(root) is inner
    # A module of one's own that happens to have such a name is no wrapper.
    own = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    assert plain_name(own, "module.weight") == "module.weight"
    assert plain_name(own, "_orig_mod.weight") == "_orig_mod.weight"
    assert aliases(Tied()) == {"head.weight": "embed.weight"}


def test_logits_are_found_in_what_models_return() -> None:
    x = torch.ones(2, 3)
    assert first_tensor(x) is x
    assert first_tensor((x, x + 1)) is x
    assert first_tensor({"loss": torch.zeros(()), "logits": x}) is x
    for wrong in ({"out": x}, (), None, ("a", x)):
        with pytest.raises(ConfigError, match="there are no logits"):
            first_tensor(wrong)
