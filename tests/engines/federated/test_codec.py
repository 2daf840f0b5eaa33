"""What encodings do to federated rounds: differences, error feedback, one encoding a cohort, nothing lost for good."""

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
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.messages import UpdateError, as_it_arrives
from farshore.engines.federated.methods import FLOATS, FedAvg, FederatedMethod, Scaffold, Update, Work
from farshore.engines.federated.rounds import Rounds
from farshore.engines.federated.tensor_partition import cut_for
from farshore.engines.federated.tree import Part
from farshore.engines.federated.update_validation import contributed
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


def update_of(state: Part, step: float = 0.01, seed: int = 0) -> Update:
    """The state after a step of some size."""
    rng = np.random.default_rng(seed)
    made = {
        n: a + step * rng.standard_normal(a.shape).astype(np.float32) if n == FLOATS else a for n, a in state.items()
    }
    return Update(made, 5, 1, 0.5)


def arrives(codec: UpdateCodec, update: Update, seen: Part, memory: dict[str, Any] | None = None) -> Update:
    message = codec.up(1, update, seen, {} if memory is None else memory)
    return codec.read(as_it_arrives(message), 1, seen, seen)


@pytest.mark.parametrize("uplink", [Uplink(), *LOSSY], ids=str)
def test_pieces_cover_a_vector_once_and_put_back_what_they_took(uplink: Uplink) -> None:
    layout = net().layout
    cut = cut_for(uplink)
    assert (cut is None) == (uplink.encoding == "raw")
    for length in (layout.total, layout.trainable) if cut else ():
        vector = np.arange(length, dtype=np.float32)
        back, seen = np.full_like(vector, -1), 0
        pieces = cut("floats", length, layout) if cut else ()
        for piece in pieces:
            tensor = piece.take(vector)
            assert tensor.shape == piece.shape
            piece.put(back, tensor)
            seen += tensor.size
        assert seen == length
        assert np.array_equal(back, vector)
        assert len({piece.name for piece in pieces}) == len(pieces)


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
def test_what_is_lost_of_an_update_shrinks_with_the_step(uplink: Uplink) -> None:
    flat = net()
    codec = UpdateCodec(uplink, layout=flat.layout)
    state = FedAvg().start(flat)
    state[FLOATS] *= 100
    errors = []
    for step in (1.0, 1e-3):
        update = update_of(state, step)
        got = arrives(codec, update, state)
        assert np.array_equal(got.tensors["integers"], state["integers"])
        errors.append(float(np.abs(got.tensors[FLOATS] - update.tensors[FLOATS]).max()) / step)
    assert errors[0] > 0
    # In units of the step the error stays what it was; the last bits of the sum itself are all that comes on top.
    assert errors[1] < 1.01 * errors[0] + 2 * float(np.spacing(np.abs(state[FLOATS]).max())) / 1e-3


def test_int8_has_a_scale_for_each_output_of_a_layer() -> None:
    flat = net()
    state = FedAvg().start(flat)
    view = next(v for v in flat.layout.floats if v.name == "3.weight")  # (10, 32)
    change = np.zeros_like(state[FLOATS])
    scale = np.logspace(-4, 0, 10, dtype=np.float32)[:, None]
    rows = scale * np.random.default_rng(0).uniform(-1, 1, view.shape).astype(np.float32)
    change[view.start : view.start + view.count] = rows.reshape(-1)
    zero = {**state, FLOATS: np.zeros_like(state[FLOATS])}
    got = arrives(
        UpdateCodec(Uplink(encoding="int8"), layout=flat.layout), Update({**zero, FLOATS: change}, 1, 1, 0.0), zero
    )
    error = np.abs(got.tensors[FLOATS][view.start : view.start + view.count].reshape(view.shape) - rows)
    assert (error <= scale / 127 / 2 * 1.01).all()


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
def test_with_error_feedback_what_was_sent_adds_up_to_what_was_meant(uplink: Uplink) -> None:
    flat = net()
    uplink = uplink.model_copy(update={"error_feedback": True})
    codec = UpdateCodec(uplink, layout=flat.layout)
    state, memory = FedAvg().start(flat), dict[str, torch.Tensor]()
    meant = sent = np.zeros(flat.layout.total)
    for number in range(6):
        update = update_of(state, seed=number)
        meant = meant + update.tensors[FLOATS] - state[FLOATS]
        sent = sent + arrives(codec, update, state, memory).tensors[FLOATS] - state[FLOATS]
    left = memory["floats.lost"].numpy()
    assert np.abs(left).max() > 0
    assert np.allclose(sent + left, meant, atol=1e-5)
    assert codec.remembers(FedAvg(), flat) == {"floats.lost": flat.layout.total}


def test_only_what_feeds_back_remembers() -> None:
    flat = net()
    for uplink in LOSSY:
        kept = UpdateCodec(uplink, layout=flat.layout).remembers(Scaffold(), flat)
        assert ("floats.lost" in kept) == (uplink.encoding in ("topk", "lowrank"))
        assert kept.get("control.lost", flat.layout.trainable) == kept["control"] == flat.layout.trainable
    assert not Uplink(encoding="topk", error_feedback=False).feeds_back
    assert not Uplink(error_feedback=True).feeds_back


@pytest.mark.parametrize("uplink", LOSSY, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused_and_spoils_no_later_one(uplink: Uplink, bad: float) -> None:
    flat = net()
    codec = UpdateCodec(uplink.model_copy(update={"error_feedback": True}), layout=flat.layout)
    state, memory = FedAvg().start(flat), dict[str, torch.Tensor]()
    arrives(codec, update_of(state), state, memory)
    spoilt = update_of(state, seed=1)
    spoilt.tensors[FLOATS][3] = bad
    with pytest.raises(UpdateError, match="its 'floats' are not finite"):
        contributed(FedAvg(), state, arrives(codec, spoilt, state, memory))
    assert torch.isfinite(memory["floats.lost"]).all()
    arrives(codec, update_of(state, seed=2), state, memory)


def test_a_difference_beyond_half_precision_travels_raw() -> None:
    flat = net()
    state = FedAvg().start(flat)
    got = arrives(UpdateCodec(Uplink(encoding="fp16"), layout=flat.layout), update_of(state, 1e6), state)
    assert np.allclose(got.tensors[FLOATS], update_of(state, 1e6).tensors[FLOATS])


def test_an_update_without_one_of_its_layers_is_refused_by_name() -> None:
    flat = net()
    codec = UpdateCodec(Uplink(encoding="int8"), layout=flat.layout)
    state = FedAvg().start(flat)
    message = codec.up(1, update_of(state), state, {})
    fewer = Message("update", 1, tensors=dict(list(message.tensors.items())[1:]), fields=message.fields)
    with pytest.raises(UpdateError, match=r"instead of .*floats/0.weight"):
        codec.read(as_it_arrives(fewer), 1, state, state)


def test_a_client_refuses_a_state_that_is_another_models() -> None:
    codec, state = UpdateCodec(downlink=Downlink(encoding="int8"), layout=net().layout), FedAvg().start(net())
    with pytest.raises(WireError, match="not the one of this method and model"):
        codec.state(UpdateCodec().down(1, state), state)


@pytest.mark.parametrize("encoding", ["fp16", "bf16", "int8"])
def test_server_and_clients_see_the_same_of_a_state_that_is_encoded_once(
    encoding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real: Callable[..., Any] = Int8.encode
    monkeypatch.setattr(Int8, "encode", lambda self, array: calls.append(1) or real(self, array))
    flat = net()
    codec = UpdateCodec(downlink=Downlink(encoding=encoding), layout=flat.layout)
    state = Scaffold().start(flat)
    message = codec.down(1, state)
    seen = codec.seen(message, state)
    once = len(calls)
    for _ in range(3):
        got = codec.state(as_it_arrives(message), state)
        assert all(np.array_equal(got[n], seen[n]) for n in state)
    assert len(calls) == once
    assert np.array_equal(seen["integers"], state["integers"])
    assert 0 < np.abs(seen[FLOATS] - state[FLOATS]).max() < 0.02


# ---- whole rounds ------------------------------------------------------------------------------------------------


class Three:
    """Three clients whose largest gradients point away from the common minimum, 0.

    f_i(x) = ⟨a_i, x⟩² + ¼|x|² from x = (1, 1, 1): what each sends of its gradient by top-1 adds up to a step uphill
    (Beznosikov 2020, example 1).
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

    def evaluate(self, flat: FlatModel, state: Part) -> dict[str, float]:
        return {"distance": float(np.linalg.norm(state[FLOATS]))}


class Session:
    """As much of a session as rounds need."""

    resume_step = None
    channels: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.run = SimpleNamespace(seed=Seed(0), directory=folder)

    def traffic(self) -> dict[str, int]:
        return {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **values: None


def distances(task: Three, uplink: Uplink, downlink: Downlink, rounds: int) -> tuple[list[float], list[Transfer]]:
    rows: list[Transfer] = []
    codec = UpdateCodec(uplink, downlink, task.model().layout)
    fleet = SimulatedPool(ClientRunner(task, codec, LocalClientStates()), 3, codec, rows.append)
    schedule = FederatedConfig(rounds=rounds, per_round=3, checkpoint_every=rounds)
    with TemporaryDirectory() as folder:
        history = Rounds(Session(Path(folder)), task, fleet, schedule).run()  # type: ignore[arg-type]
    return [entry["distance"] for entry in history], rows


def test_topk_with_error_feedback_converges_where_without_it_does_not() -> None:
    topk = Uplink(encoding="topk", fraction=1 / 3)
    without, _ = distances(Three(), topk.model_copy(update={"error_feedback": False}), Downlink(), 60)
    assert without[-1] > without[0] > np.sqrt(3)
    fed_back, _ = distances(Three(), topk, Downlink(), 200)
    assert fed_back[-1] < 0.05
    raw, _ = distances(Three(), Uplink(), Downlink(), 200)
    assert raw[-1] < 0.05


def test_steps_below_the_rounding_of_the_way_down_still_add_up() -> None:
    """A bfloat16 keeps eight bits: near 1 a step of 0.001 is lost unless the server goes on from what it had."""
    moved, _ = distances(Three(lr=1e-4), Uplink(), Downlink(encoding="bf16"), 100)
    exact, _ = distances(Three(lr=1e-4), Uplink(), Downlink(), 100)
    assert exact[-1] < exact[0] - 0.01
    assert moved[-1] == pytest.approx(exact[-1], abs=2e-3)


def test_topk_of_a_hundredth_saves_what_its_size_says(capsys: pytest.CaptureFixture[str]) -> None:
    flat = FlatModel(nn.Linear(2400, 10))  # 24,010 numbers
    state = FedAvg().start(flat)
    update = update_of(state)
    sizes = {}
    for name, uplink in {"raw": Uplink(), "topk": Uplink(encoding="topk", values="fp16")}.items():
        sizes[name] = pack(UpdateCodec(uplink, layout=flat.layout).up(1, update, state, {})).payload_bytes
    # 241 values of two bytes, 241 places of 15 bits, their number.
    assert sizes == {"raw": 96_040, "topk": 241 * 2 + -(-241 * 15 // 8) + 4}
    with capsys.disabled():
        times = sizes["raw"] / sizes["topk"]
        print(f"\ntop-k of 1 % in fp16: {sizes['topk']:,} of {sizes['raw']:,} bytes an update, {times:.0f}x less")


@pytest.mark.parametrize("wrong", [{"encoding": "zip"}, {"encoding": "topk", "fraction": 0}, {"rank": 0}, {"what": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FederatedConfig(uplink=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("uplink", [Uplink(), *LOSSY], ids=str)
def test_settings_come_back_as_they_were_written_down(uplink: Uplink) -> None:
    written = FederatedConfig(uplink=uplink, downlink=Downlink(encoding="bf16"))
    assert FederatedConfig.model_validate(written.model_dump(mode="json")) == written


def test_what_is_not_told_is_a_hundredth_and_rank_four() -> None:
    layout = FlatModel(nn.Linear(100, 50)).layout
    for unsaid, said in (
        (Uplink(encoding="topk"), Uplink(encoding="topk", fraction=0.01)),
        (Uplink(encoding="lowrank"), Uplink(encoding="lowrank", rank=4)),
    ):
        cuts = [cut_for(uplink) for uplink in (unsaid, said)]
        pieces = [cut("floats", layout.total, layout) for cut in cuts if cut]
        assert pieces[0] == pieces[1]
        assert len(pieces) == 2
