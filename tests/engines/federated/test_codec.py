"""Encodings of federated rounds: differences, error feedback, one encoding per cohort, no accumulated error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from farshore.core.errors import WireError
from farshore.core.message import Message
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.federated.client_state import LocalClientStates
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.config import Downlink, FederatedConfig, Uplink
from farshore.engines.federated.drift_correction import Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.messages import UpdateError, as_received
from farshore.engines.federated.methods import FLOATS, FedAvg, FederatedMethod, Update, Work
from farshore.engines.federated.rounds import Rounds
from farshore.engines.federated.tensor_partition import cut_for
from farshore.engines.federated.tree import NamedArrays
from farshore.engines.federated.update_validation import validated_contribution
from farshore.models.flat_params import FlatModel
from farshore.simulations.federated.client_runner import ClientRunner
from farshore.simulations.federated.simulated_pool import SimulatedPool
from farshore.wire.encodings import Int8
from farshore.wire.pack import pack

LOSSY = [
    Uplink(encoding="fp16"),
    Uplink(encoding="bf16"),
    Uplink(encoding="int8"),
    Uplink(encoding="int4"),
    Uplink(encoding="topk", fraction=0.1),
    Uplink(encoding="topk", fraction=0.2, values="int8"),
    Uplink(encoding="lowrank", rank=2),
    Uplink(encoding="lowrank", rank=2, values="fp16"),
]


def net() -> FlatModel:
    module = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    return FlatModel(module)


def update_of(state: NamedArrays, step: float = 0.01, seed: int = 0) -> Update:
    """An update with the state after a random step of size ``step``."""
    rng = np.random.default_rng(seed)
    made = {
        n: a + step * rng.standard_normal(a.shape).astype(np.float32) if n == FLOATS else a for n, a in state.items()
    }
    return Update(made, 5, 1, 0.5)


def transmit(
    codec: UpdateCodec, update: Update, received: NamedArrays, client_state: dict[str, Any] | None = None
) -> Update:
    message = codec.encode_update(1, update, received, {} if client_state is None else client_state)
    return codec.decode_update(as_received(message), 1, received, received)


@pytest.mark.parametrize("uplink", [Uplink(), *LOSSY], ids=str)
def test_slices_cover_a_vector_once_and_restore_it(uplink: Uplink) -> None:
    layout = net().layout
    cut = cut_for(uplink)
    assert (cut is None) == (uplink.encoding == "raw")
    for length in (layout.total, layout.trainable) if cut else ():
        vector = np.arange(length, dtype=np.float32)
        restored, count = np.full_like(vector, -1), 0
        slices = cut("floats", length, layout) if cut else ()
        for part in slices:
            tensor = part.take(vector)
            assert tensor.shape == part.shape
            part.put(restored, tensor)
            count += tensor.size
        assert count == length
        assert np.array_equal(restored, vector)
        assert len({part.name for part in slices}) == len(slices)


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
def test_the_encoding_error_of_an_update_shrinks_with_the_step(uplink: Uplink) -> None:
    flat = net()
    codec = UpdateCodec(uplink, layout=flat.layout)
    state = FedAvg().start(flat)
    state[FLOATS] *= 100
    errors = []
    for step in (1.0, 1e-3):
        update = update_of(state, step)
        got = transmit(codec, update, state)
        assert np.array_equal(got.tensors["integers"], state["integers"])
        errors.append(float(np.abs(got.tensors[FLOATS] - update.tensors[FLOATS]).max()) / step)
    assert errors[0] > 0
    # Relative to the step, the error stays the same, except for the rounding of the sum itself.
    assert errors[1] < 1.01 * errors[0] + 2 * float(np.spacing(np.abs(state[FLOATS]).max())) / 1e-3


def test_int8_has_one_scale_per_output_of_a_layer() -> None:
    flat = net()
    state = FedAvg().start(flat)
    view = next(v for v in flat.layout.floats if v.name == "3.weight")  # (10, 32)
    change = np.zeros_like(state[FLOATS])
    scale = np.logspace(-4, 0, 10, dtype=np.float32)[:, None]
    rows = scale * np.random.default_rng(0).uniform(-1, 1, view.shape).astype(np.float32)
    change[view.start : view.start + view.count] = rows.reshape(-1)
    zero = {**state, FLOATS: np.zeros_like(state[FLOATS])}
    got = transmit(
        UpdateCodec(Uplink(encoding="int8"), layout=flat.layout), Update({**zero, FLOATS: change}, 1, 1, 0.0), zero
    )
    error = np.abs(got.tensors[FLOATS][view.start : view.start + view.count].reshape(view.shape) - rows)
    assert (error <= scale / 127 / 2 * 1.01).all()


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
def test_with_error_feedback_sent_updates_and_stored_error_sum_to_the_true_updates(uplink: Uplink) -> None:
    flat = net()
    uplink = uplink.model_copy(update={"error_feedback": True})
    codec = UpdateCodec(uplink, layout=flat.layout)
    state, client_state = FedAvg().start(flat), dict[str, torch.Tensor]()
    expected = sent = np.zeros(flat.layout.total)
    for number in range(6):
        update = update_of(state, seed=number)
        expected = expected + update.tensors[FLOATS] - state[FLOATS]
        sent = sent + transmit(codec, update, state, client_state).tensors[FLOATS] - state[FLOATS]
    error = client_state["floats.lost"].numpy()
    assert np.abs(error).max() > 0
    assert np.allclose(sent + error, expected, atol=1e-5)
    assert codec.client_state_sizes(FedAvg(), flat) == {"floats.lost": flat.layout.total}


def test_only_encodings_with_error_feedback_keep_errors() -> None:
    flat = net()
    for uplink in LOSSY:
        kept = UpdateCodec(uplink, layout=flat.layout).client_state_sizes(Scaffold(), flat)
        assert ("floats.lost" in kept) == (uplink.encoding in ("topk", "lowrank"))
        assert kept.get("control.lost", flat.layout.trainable) == kept["control"] == flat.layout.trainable
    assert not Uplink(encoding="topk", error_feedback=False).uses_error_feedback
    assert not Uplink(error_feedback=True).uses_error_feedback


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_update_is_refused_and_does_not_spoil_later_ones(uplink: Uplink, bad: float) -> None:
    flat = net()
    codec = UpdateCodec(uplink.model_copy(update={"error_feedback": True}), layout=flat.layout)
    state, client_state = FedAvg().start(flat), dict[str, torch.Tensor]()
    transmit(codec, update_of(state), state, client_state)
    spoilt = update_of(state, seed=1)
    spoilt.tensors[FLOATS][3] = bad
    with pytest.raises(UpdateError, match="'floats' has non-finite values"):
        validated_contribution(FedAvg(), state, transmit(codec, spoilt, state, client_state))
    assert torch.isfinite(client_state["floats.lost"]).all()
    transmit(codec, update_of(state, seed=2), state, client_state)


def test_a_difference_beyond_half_precision_is_sent_raw() -> None:
    flat = net()
    state = FedAvg().start(flat)
    got = transmit(UpdateCodec(Uplink(encoding="fp16"), layout=flat.layout), update_of(state, 1e6), state)
    assert np.allclose(got.tensors[FLOATS], update_of(state, 1e6).tensors[FLOATS])


def test_an_update_without_one_of_its_layers_is_refused_with_the_layers_name() -> None:
    flat = net()
    codec = UpdateCodec(Uplink(encoding="int8"), layout=flat.layout)
    state = FedAvg().start(flat)
    message = codec.encode_update(1, update_of(state), state, {})
    fewer = Message("update", 1, tensors=dict(list(message.tensors.items())[1:]), fields=message.fields)
    with pytest.raises(UpdateError, match=r"expected tensors .*floats/0.weight"):
        codec.decode_update(as_received(fewer), 1, state, state)


def test_a_client_refuses_the_state_of_another_model() -> None:
    codec, state = UpdateCodec(downlink=Downlink(encoding="int8"), layout=net().layout), FedAvg().start(net())
    with pytest.raises(WireError, match="does not match this method and model"):
        codec.decode_state(UpdateCodec().encode_state(1, state), state)


@pytest.mark.parametrize("encoding", ["fp16", "bf16", "int8"])
def test_server_and_clients_decode_a_state_that_is_encoded_once_equally(
    encoding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real: Callable[..., Any] = Int8.encode
    monkeypatch.setattr(Int8, "encode", lambda self, array: calls.append(1) or real(self, array))
    flat = net()
    codec = UpdateCodec(downlink=Downlink(encoding=encoding), layout=flat.layout)
    state = Scaffold().start(flat)
    message = codec.encode_state(1, state)
    received = codec.received_state(message, state)
    once = len(calls)
    for _ in range(3):
        got = codec.decode_state(as_received(message), state)
        assert all(np.array_equal(got[n], received[n]) for n in state)
    assert len(calls) == once
    assert np.array_equal(received["integers"], state["integers"])
    assert 0 < np.abs(received[FLOATS] - state[FLOATS]).max() < 0.02


# ---- whole rounds ------------------------------------------------------------------------------------------------


class ThreeClients:
    """A task of three clients whose largest gradient entries point away from the common minimum, 0.

    f_i(x) = ⟨a_i, x⟩² + ¼|x|², starting at x = (1, 1, 1): the sum of the top-1 entries of their gradients is a step
    uphill (Beznosikov 2020, example 1).
    """

    notes: list[str] = []  # noqa: RUF012

    def __init__(self, lr: float = 0.05) -> None:
        self._lr = lr

    def model(self) -> FlatModel:
        return FlatModel(nn.ParameterDict({"x": nn.Parameter(torch.ones(3))}))

    def method(self, flat: FlatModel) -> FederatedMethod:
        return FedAvg()

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        a = torch.full((3,), 2.0)
        a[client] = -3.0
        x = next(iter(flat.module.parameters()))
        return Work(lambda _: (a @ x).square() + x.square().sum() / 4, [None], 1, Sgd(self._lr))

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        return {"distance": float(np.linalg.norm(state[FLOATS]))}


class Session:
    """The parts of a session that rounds need."""

    resume_step = None
    channels: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.run = SimpleNamespace(seed=Seed(0), directory=folder)

    def traffic(self) -> dict[str, int]:
        return {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **values: None


def distances(
    task: ThreeClients, uplink: Uplink, downlink: Downlink, rounds: int
) -> tuple[list[float], list[Transfer]]:
    rows: list[Transfer] = []
    codec = UpdateCodec(uplink, downlink, task.model().layout)
    pool = SimulatedPool(ClientRunner(task, codec, LocalClientStates()), 3, codec, rows.append)
    schedule = FederatedConfig(rounds=rounds, per_round=3, checkpoint_every=rounds)
    with TemporaryDirectory() as folder:
        history = Rounds(Session(Path(folder)), task, pool, schedule).run()  # type: ignore[arg-type]
    return [entry["distance"] for entry in history], rows


def test_topk_converges_with_error_feedback_and_diverges_without() -> None:
    topk = Uplink(encoding="topk", fraction=1 / 3)
    no_feedback, _ = distances(ThreeClients(), topk.model_copy(update={"error_feedback": False}), Downlink(), 60)
    assert no_feedback[-1] > no_feedback[0] > np.sqrt(3)
    feedback, _ = distances(ThreeClients(), topk, Downlink(), 200)
    assert feedback[-1] < 0.05
    raw, _ = distances(ThreeClients(), Uplink(), Downlink(), 200)
    assert raw[-1] < 0.05


def test_steps_below_the_rounding_of_the_downlink_still_accumulate() -> None:
    """A bfloat16 has eight bits: near 1, a step of 0.001 is lost unless the server keeps the exact state."""
    encoded, _ = distances(ThreeClients(lr=1e-4), Uplink(), Downlink(encoding="bf16"), 100)
    exact, _ = distances(ThreeClients(lr=1e-4), Uplink(), Downlink(), 100)
    assert exact[-1] < exact[0] - 0.01
    assert encoded[-1] == pytest.approx(exact[-1], abs=2e-3)


def test_topk_of_one_percent_has_the_expected_size(capsys: pytest.CaptureFixture[str]) -> None:
    flat = FlatModel(nn.Linear(2400, 10))  # 24,010 numbers
    state = FedAvg().start(flat)
    update = update_of(state)
    sizes = {}
    for name, uplink in {"raw": Uplink(), "topk": Uplink(encoding="topk", values="fp16")}.items():
        sizes[name] = pack(UpdateCodec(uplink, layout=flat.layout).encode_update(1, update, state, {})).payload_bytes
    # 241 values of two bytes, 241 indices of 15 bits, and their number.
    assert sizes == {"raw": 96_040, "topk": 241 * 2 + -(-241 * 15 // 8) + 4}
    with capsys.disabled():
        times = sizes["raw"] / sizes["topk"]
        print(f"\ntop-k of 1 % in fp16: {sizes['topk']:,} of {sizes['raw']:,} bytes per update, {times:.0f}x less")


@pytest.mark.parametrize("wrong", [{"encoding": "zip"}, {"encoding": "topk", "fraction": 0}, {"rank": 0}, {"what": 1}])
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FederatedConfig(uplink=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("uplink", [Uplink(), *LOSSY], ids=str)
def test_settings_survive_serialization(uplink: Uplink) -> None:
    written = FederatedConfig(uplink=uplink, downlink=Downlink(encoding="bf16"))
    assert FederatedConfig.model_validate(written.model_dump(mode="json")) == written


def test_the_default_fraction_is_one_percent_and_the_default_rank_four() -> None:
    layout = FlatModel(nn.Linear(100, 50)).layout
    for default, explicit in (
        (Uplink(encoding="topk"), Uplink(encoding="topk", fraction=0.01)),
        (Uplink(encoding="lowrank"), Uplink(encoding="lowrank", rank=4)),
    ):
        cuts = [cut_for(uplink) for uplink in (default, explicit)]
        slices = [cut("floats", layout.total, layout) for cut in cuts if cut]
        assert slices[0] == slices[1]
        assert len(slices) == 2
