"""The two halves compute on devices and in precisions of their own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from farshore.core.errors import ConfigError
from farshore.engines.split.attach import BlockRange, make_settings, recipe_of
from farshore.engines.split.cloud import SegmentServer
from farshore.engines.split.remote import RemoteSegment

CODEC = {"rank": 8, "encoding": "int8", "ragged": True}


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """Use the attention that the CPU and the simulated device have in common."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def train(model: Any, batch: Any, scaler: torch.amp.GradScaler | None = None, steps: int = 3) -> list[torch.Tensor]:
    """Train with accumulation and clipping; return the losses, the norms, and the state at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    found = []
    for step in range(steps):
        for micro in range(2):
            loss = model(**batch(10 * step + micro)).loss
            scaler.scale(loss / 2).backward()
            found.append(loss.detach())
        scaler.unscale_(optimizer)
        found.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [*found, *(tensor for _, tensor in sorted(model.state_dict().items()))]


@pytest.mark.parametrize("settings", [{}, CODEC], ids=["whole", "codec"])
def test_a_server_on_a_device_has_the_bits_of_the_cpu(
    settings: dict[str, Any],
    split: Any,
    classifier: Any,
    batch: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[list[torch.Tensor]] = []
    state: dict[str, torch.Tensor] = {}

    def script(model: Any, _: Any) -> None:
        results.append(train(model, batch))
        state.update(model.state_dict())
        model.load_state_dict(state)

    model = classifier()  # dropout kernels draw their masks differently
    for device in ("cpu", "lazy"):
        if device == "lazy":
            context = request.getfixturevalue("simulated_device")
            for name in ("__init__", "serve"):
                monkeypatch.setattr(SegmentServer, name, within(context, vars(SegmentServer)[name]))
        torch.manual_seed(0)
        split(copy.deepcopy(model), script, **settings)
        assert {p.device.type for p in split.cloud.segment.parameters()} == {device}
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def within(context: Any, function: Any) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return run


def test_a_script_on_a_device_has_the_bits_of_the_cpu(
    split: Any, classifier: Any, batch: Any, simulated_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's model is on a device, the server's half on the CPU."""
    monkeypatch.setattr("farshore.engines.split.placement.choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(RemoteSegment, "__init__", within(simulated_device, RemoteSegment.__init__))
    results = []

    def script(model: Any, _: Any) -> None:
        device = model.classifier.weight.device

        def moved(seed: int) -> dict[str, torch.Tensor]:
            return {name: tensor.to(device) for name, tensor in batch(seed).items()}

        with simulated_device():
            results.append([tensor.cpu() for tensor in train(model, moved)])

    model = classifier()
    split(copy.deepcopy(model), script, **CODEC)
    with simulated_device():
        model = copy.deepcopy(model).to("lazy")
    split(model, script, **CODEC)
    assert model.bert.encoder.layer[1].farshore.codec.encode.weight.device.type == "lazy"
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_server_in_half_precision_returns_float32_near_the_exact_values(
    precision: str, split: Any, classifier: Any, batch: Any
) -> None:
    """As in any script, fp16 needs a gradient scaler; it scales the server's gradients too."""
    results: list[list[torch.Tensor]] = []
    computed: list[torch.dtype] = []

    def script(model: Any, _: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=precision == "fp16")
        block = split.cloud.segment.blocks[1]
        block.register_forward_hook(lambda *_: computed.append(torch.get_autocast_dtype("cpu")))
        results.append(train(model, batch, scaler))

    model = classifier()
    for each in ("fp32", precision):
        split(copy.deepcopy(model), script, precision=each)
        assert all(p.dtype == torch.float32 for p in split.cloud.segment.parameters())
    assert computed[-1] == (torch.bfloat16 if precision == "bf16" else torch.float16)
    exact, rounded = (result[:9] for result in results)  # losses and norms
    assert not all(torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))
    assert all(torch.allclose(a, b, rtol=0.1) for a, b in zip(exact, rounded, strict=True))


def test_a_script_may_use_autocast(split: Any, classifier: Any, batch: Any) -> None:
    results: list[list[torch.Tensor]] = []

    def script(model: Any, _: Any) -> None:
        results.append(train(model, batch))

    def autocast(model: Any, _: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            results.append(train(model, batch))

    model = classifier()
    for each in (script, autocast):
        split(copy.deepcopy(model), each, rank=8)
    exact, rounded = (result[:9] for result in results)  # losses and norms
    assert not all(torch.equal(a, b.float()) for a, b in zip(exact, rounded, strict=True))
    assert all(torch.allclose(a, b.float(), rtol=0.2) for a, b in zip(exact, rounded, strict=True))


def test_an_overflow_in_fp16_skips_the_step_on_both_halves(split: Any, classifier: Any, batch: Any) -> None:
    def script(model: Any, attachment: Any) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        train(model, batch, scaler, steps=1)
        assert attachment.steps == 0
        assert scaler.get_scale() == 2.0**39
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        train(model, batch, torch.amp.GradScaler("cpu", init_scale=2.0**10), steps=1)
        assert attachment.steps == 1

    split(classifier(), script, precision="fp16")


def test_a_device_that_the_server_lacks_is_refused(split: Any, classifier: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no 'cuda' device"):
        split(classifier(), lambda *_: None, device="cuda")


def test_an_invalid_device_or_precision_is_refused(classifier: Any) -> None:
    recipe = recipe_of(classifier(), BlockRange("bert.encoder.layer", 1, 3))
    for wrong in ({"device": "tpu"}, {"precision": "fp8"}, {"precision": "fp16", "encoding": "int8"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            make_settings(recipe=recipe, **wrong)
