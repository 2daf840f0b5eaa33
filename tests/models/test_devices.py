"""The choice of device and precision. No accelerator is at hand: availability is patched where one is needed."""

from __future__ import annotations

import threading

import pytest
import torch

from farshore.core.errors import ConfigError
from farshore.models.devices import (
    autocast,
    choose_device,
    forked_generators,
    gradient_scaler,
    released_generators,
    seed_generators,
)


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_prefers_accelerators(cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(chosen)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_refused_with_a_hint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"no '{name}' device.*device=cpu"):
        choose_device(name)  # type: ignore[arg-type]


def test_autocast_computes_matrix_products_in_the_precision() -> None:
    a, cpu = torch.ones(4, 4), torch.device("cpu")
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        with autocast(cpu, precision):  # type: ignore[arg-type]
            assert (a @ a).dtype == dtype


def test_only_fp16_scales_gradients() -> None:
    cpu = torch.device("cpu")
    assert gradient_scaler(cpu, "fp16").is_enabled()
    assert not gradient_scaler(cpu, "bf16").is_enabled()
    assert not gradient_scaler(cpu, "fp32").is_enabled()


def test_forked_generators_are_restored() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with forked_generators(torch.device("cpu")):
        torch.manual_seed(2)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wait_inside_a_fork_lets_another_thread_fork_and_keeps_the_state() -> None:
    cpu = torch.device("cpu")
    used = threading.Event()

    def other() -> None:
        with forked_generators(cpu):
            torch.manual_seed(99)
            torch.rand(5)
            used.set()

    with forked_generators(cpu), forked_generators(cpu):
        torch.manual_seed(4)
        expected = torch.rand(2), torch.rand(2)
        torch.manual_seed(4)
        first = torch.rand(2)
        thread = threading.Thread(target=other)
        thread.start()
        assert not used.wait(0.2)
        with released_generators():
            assert used.wait(30)
        thread.join()
        assert torch.equal(first, expected[0])
        assert torch.equal(torch.rand(2), expected[1])


def test_a_release_outside_a_fork_has_no_effect() -> None:
    state = torch.get_rng_state()
    with released_generators():
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)


def test_seeded_generators_draw_what_manual_seed_lets_them_draw() -> None:
    with forked_generators(torch.device("cpu")):
        torch.manual_seed(5)
        expected = torch.rand(3)
        seed_generators(torch.device("cpu"), 5)
        assert torch.equal(torch.rand(3), expected)
