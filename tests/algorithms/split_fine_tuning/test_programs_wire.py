"""Messages of a split fine-tuning run: privacy of token ids, encodings, evaluation, credits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.split_fine_tuning.cloud_program import CloudProgram
from farshore.algorithms.split_fine_tuning.statistics import CodeStatistics
from farshore.algorithms.split_fine_tuning.wire_codec import code_tensors, codes_of
from farshore.core.errors import WireError
from farshore.core.message import Message, Tensor
from farshore.wire.pack import pack, unpack

LOSSY = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1}


@pytest.mark.parametrize("changes", [{}, {**LOSSY, "sentence_vector": 4, "average_every": 2}], ids=["plain", "all"])
def test_the_cloud_never_receives_token_ids(runner: Any, changes: dict[str, Any]) -> None:
    received: list[Message] = []

    def record(owner: str, message: Message) -> Message:
        if owner == "server":
            received.append(message)
        return message

    outcome = runner.run(runner.config(**changes), 2, on_receive=record)
    integers = {(m.kind, n) for m in received for n, t in m.tensors.items() if t.array.dtype.kind not in "f"}
    assert integers == {(k, n) for k in ("activation", "evaluation") for n in ("lengths", "labels")}
    for message in received:
        if message.kind in ("activation", "evaluation"):
            lengths, labels = message.array("lengths"), message.array("labels")
            assert lengths.shape == labels.shape  # one number per sentence cannot hold token ids
            assert set(np.unique(labels)) <= {0, 1}
    labels = np.concatenate([m.array("labels") for m in received if m.kind == "activation"])
    assert len(set(labels.tolist())) == 2, "labels are sent: the loss is computed in the cloud"
    fields = {(n, type(v)) for m in received for n, v in m.fields.items()}
    assert {n for n, kind in fields if kind in (str, bytes)} == {"what", "plan", "labels"}
    embeddings = [n for n, _ in outcome.cloud.trunk.named_parameters() if "embeddings" in n]
    assert not embeddings, "the cloud must not hold embeddings to compare codes with"


@pytest.mark.parametrize("bits", ["raw", "fp16", "bf16", "int8", "int4", "int2"])
def test_the_encoding_of_a_sentence_does_not_depend_on_its_batch(bits: str) -> None:
    statistics = CodeStatistics(8)
    generator = torch.Generator().manual_seed(1)
    statistics.set(torch.linspace(-2, 2, 8), torch.linspace(0.1, 3, 8))
    rows = torch.randn(40, 8, generator=generator).numpy() * np.linspace(0.1, 5, 40, dtype=np.float32)[:, None]

    def through(part: Any) -> torch.Tensor:
        packed = pack(Message("evaluation", tensors=code_tensors(part, bits, statistics)))
        message = unpack(packed.header, memoryview(b"".join(packed.payload)))
        return codes_of(message, part.shape, "edge 'x'")

    batch = through(rows)
    assert all(torch.equal(through(rows[i : i + 5]), batch[i : i + 5]) for i in range(0, 40, 5))
    if bits == "int4":
        inside = np.abs(rows - statistics.mean.numpy()) < 7 * 0.335 * statistics.deviation.numpy()
        error = np.abs(batch.numpy() - rows) / statistics.deviation.numpy()
        assert error[inside].max() <= 0.335 / 2 * 1.01


def test_evaluation_reaches_both_halves_and_has_no_dropout(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations with (almost) unchanged weights give the same logits in spite of dropout."""
    logits: list[torch.Tensor] = []
    real = CloudProgram._logits

    def keep(self: CloudProgram, inputs: Any) -> torch.Tensor:
        found = real(self, inputs)
        if not torch.is_grad_enabled():
            logits.append(found)
        return found

    monkeypatch.setattr(CloudProgram, "_logits", keep)
    frozen = {"dropout": 0.5, "learning_rate": 1e-30, "eval_every": 1, "epochs": 1}
    outcome = runner.run(runner.config(**frozen))
    first, *others = logits
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)
    assert len(set(outcome.losses)) == 3, "training has no dropout"
    assert outcome.cloud.trunk.training is False


def test_dropout_is_applied_to_both_halves_in_training(runner: Any) -> None:
    """With the same batch in every step and (almost) constant weights, only dropout changes the loss."""
    frozen = {"learning_rate": 1e-30, "batch_size": 24, "epochs": 3, "train_samples": 24}
    assert len(set(np.round(runner.run(runner.config(**frozen)).losses, 5))) == 1
    assert len(set(np.round(runner.run(runner.config(**frozen, dropout=0.3)).losses, 5))) == 3


@pytest.mark.parametrize("credits", [1, 2, 3])
def test_micro_batches_in_flight_never_exceed_the_credits(runner: Any, credits: int) -> None:
    in_flight, most = [0], [0]
    full = threading.Event()

    def send(owner: str, message: Message) -> Message:
        if owner == "edge-0" and message.kind == "activation":
            in_flight[0] += 1
            most[0] = max(most[0], in_flight[0])
            if in_flight[0] == credits:
                full.set()
        return message

    def receive(owner: str, message: Message) -> Message:
        if owner == "edge-0" and message.kind == "gradient":
            in_flight[0] -= 1
        if owner == "server" and (message.kind, message.step, message.micro) == ("activation", 0, 0):
            # Stall the cloud until the edge has used all credits, then long enough to see it exceed them.
            assert full.wait(20)
            threading.Event().wait(0.3)
        return message

    runner.run(runner.config(micro_batches=5, credits=credits, epochs=1), on_send=send, on_receive=receive)
    assert most[0] == credits


def test_a_gradient_of_another_micro_batch_is_refused(runner: Any) -> None:
    def swap(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "gradient" and message.micro == 1:
            return Message("gradient", step=message.step, micro=0, tensors=message.tensors)
        return message

    with pytest.raises(WireError, match=r"edge-0.*the cloud: expected 'gradient' 0\.1, got 'gradient' 0\.0"):
        runner.run(runner.config(micro_batches=2), on_send=swap)


def test_running_statistics_are_updated_once_per_step(runner: Any) -> None:
    outcome = runner.run(runner.config(**LOSSY))
    statistics = outcome.edges["edge-0"].front.statistics
    assert int(statistics.updates) == 1 + 6  # calibration, then once per step; not in evaluations


def test_a_mean_of_wrong_width_is_refused() -> None:
    tensors = {"codes": Tensor(np.zeros((3, 8), np.float32)), "mean": Tensor(np.zeros(1, np.float16))}
    with pytest.raises(WireError, match=r"edge 'x'.*mean of shape"):
        codes_of(Message("activation", tensors=tensors), (3, 8), "edge 'x'")
