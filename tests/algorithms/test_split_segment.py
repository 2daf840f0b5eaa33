"""A split model is the model: same values, same gradients, same steps, whatever a training script does to it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers as t

from farshore.algorithms.split_segment.attach import Attachment, Place, attach, recipe_of
from farshore.algorithms.split_segment.cloud import Cloud
from farshore.algorithms.split_segment.config import Recipe, SplitSegment
from farshore.core.errors import ConfigError, PeerLostError, RunFailedError
from farshore.core.message import Message
from farshore.core.transfer import Transfer
from farshore.simulations.in_process import InProcessRun

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]
PREFIX = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}
PREFIX["gpt2"] = "transformer.h"


def classifier(family: str = "bert", dropout: float = 0.0, attention: str = "sdpa") -> Any:
    """A classifier of 5 blocks with d=32, in training mode."""
    common = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}
    bert = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64}
    bert |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    distil = {"dim": 32, "n_layers": 5, "n_heads": 4, "hidden_dim": 64, "seq_classif_dropout": dropout}
    distil |= {"dropout": dropout, "attention_dropout": dropout}
    gpt = {"n_embd": 32, "n_layer": 5, "n_head": 4, "scale_attn_by_inverse_layer_idx": True}
    gpt |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    kind, config = {
        "bert": (t.BertForSequenceClassification, t.BertConfig(**bert, **common)),
        "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig(**bert, **common)),
        "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig(**distil, **common)),
        "gpt2": (t.GPT2ForSequenceClassification, t.GPT2Config(**gpt, **common)),
    }[family]
    config._attn_implementation = attention
    torch.manual_seed(5)
    model = kind(config)
    with torch.no_grad():
        for p in model.parameters():  # larger than the library's, so that every block matters
            if p.dim() > 1:
                p.mul_(4.0)
    return model.train()


def batch(seed: int = 2, *, side: Literal["right", "left", "none"] = "right") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 6, 3, 8])
    ids = torch.randint(3, 99, (4, 9), generator=generator)
    mask = torch.ones(4, 9, dtype=torch.long)
    if side != "none":
        mask = (torch.arange(9) < lengths[:, None]).long()
        mask = mask.flip(1) if side == "left" else mask
    ids[mask == 0] = 1
    labels = torch.randint(0, 3, (4,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Split:
    """Runs a piece of a user's script against a segment in another thread, every frame on its way packed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[Transfer] = []
        self.sent: list[Message] = []
        self.cloud: Any = None
        self.result: dict[str, Any] = {}

    def __call__(
        self, model: Any, script: Callable[[Any, Attachment], None], *, start: Any = "pca", **settings: Any
    ) -> None:
        path = PREFIX[model.config.model_type]
        place = Place.find(model, (f"{path}.0", f"{path}.3"))
        settings.setdefault("ragged", False)
        config = SplitSegment(recipe=recipe_of(model, place), **settings)

        class User:
            name = "split_segment"

            @staticmethod
            def server_program(session: Any, config: Any) -> dict[str, Any]:
                self.cloud = Cloud(session, config)
                return self.cloud.serve()

            @staticmethod
            def node_program(session: Any, _: Any) -> None:
                send = session.channel.send
                session.channel.send = lambda message: (self.sent.append(message), send(message))
                with attach(model, place, config, session, start) as attachment:
                    script(model, attachment)

        # What is sent is what a server reads: JSON.
        config = SplitSegment.model_validate_json(config.model_dump_json())
        run = InProcessRun(User, config, self._folder / str(len(self.rows)), recorder=self.rows.append)  # type: ignore[arg-type]
        self.result = run.run()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return Split(tmp_path)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "farshore" not in n}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_the_whole_model(split, family, side, attention):
    whole = classifier(family, attention=attention)
    mine = copy.deepcopy(whole)
    data = batch(side=side)
    expected = whole(**data)
    expected.loss.backward()

    def script(model, _):
        got = model(**data)
        got.loss.backward()
        assert torch.equal(got.logits, expected.logits)
        there = gradients(whole)
        here = gradients(model)
        assert here
        assert set(there) - set(here) == {n for n in there if any(f".{i}." in n for i in (1, 2, 3))}
        assert all(close(here[n], there[n]) for n in here)

    split(mine, script)
    assert split.result["backwards"] == 1


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_ten_steps_with_clipping_and_a_schedule_equal_those_of_the_whole_model(split, family):
    whole = classifier(family)
    mine = copy.deepcopy(whole)

    def train(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
        losses = []
        for step in range(10):
            loss = model(**batch(step)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    expected = train(whole)

    def script(model, attachment):
        assert train(model) == pytest.approx(expected, abs=1e-6)
        assert attachment.steps == 10
        state = model.state_dict()
        assert list(state) == list(whole.state_dict())
        assert all(close(state[n], v, 2e-6) for n, v in whole.state_dict().items())

    split(mine, script, optimiser={"name": "adamw", "weight_decay": 0.05})
    assert split.result["steps"] == 10


# ---- what a script does to gradients


def _same_after_steps(split: Split, train: Callable[[Any], None], **settings: Any) -> None:
    """``train`` has the same effect on a whole and on a split model."""
    whole = classifier()
    mine = copy.deepcopy(whole)
    train(whole)

    def script(model, _):
        train(model)
        state = model.state_dict()
        assert all(close(state[n], v, 2e-6) for n, v in whole.state_dict().items())

    split(mine, script, optimiser={"name": "sgd", "momentum": 0.9}, **settings)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_accumulate_until_they_are_zeroed(split, to_none):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(3):
            for micro in range(2):
                (model(**batch(10 * step + micro)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)

    _same_after_steps(split, train)


def test_gradients_that_are_not_zeroed_are_used_again(split):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(3):
            model(**batch(step)).loss.backward()
            optimizer.step()

    _same_after_steps(split, train)


@pytest.mark.parametrize("to_none", [True, False])
def test_zeroing_without_a_step_discards_the_gradients_in_the_cloud(split, to_none):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        model(**batch(1)).loss.backward()
        optimizer.zero_grad(set_to_none=to_none)
        model(**batch(2)).loss.backward()
        optimizer.step()

    _same_after_steps(split, train)


def test_the_norm_of_all_gradients_is_that_of_the_whole_model(split):
    whole = classifier()
    mine = copy.deepcopy(whole)

    def norm(model):
        for micro in range(2):
            model(**batch(micro)).loss.backward()
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))

    split(
        mine, lambda model, _: pytest.approx(norm(whole), rel=1e-5).__eq__(norm(model)) or pytest.fail("another norm")
    )


def test_two_forwards_may_wait_for_their_backwards_in_any_order(split):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        first, second = model(**batch(1)).loss, model(**batch(2)).loss
        first.backward()
        second.backward(retain_graph=True)
        second.backward()
        optimizer.step()

    _same_after_steps(split, train)


def test_gradients_asked_for_by_name_leave_the_cloud_alone(split):
    def script(model, _):
        loss = model(**batch()).loss
        word = model.bert.embeddings.word_embeddings.weight
        (gradient,) = torch.autograd.grad(loss, [word])
        assert gradient.abs().sum() > 0
        assert all(p.grad is None for p in split.cloud.segment.parameters())

    split(classifier(), script)


def test_frozen_blocks_stay_as_they_are(split):
    model = classifier()
    for p in model.bert.encoder.layer[2].parameters():
        p.requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}

    def script(model, _):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**batch()).loss.backward()
        optimizer.step()
        state = model.state_dict()
        for n, t in before.items():
            if ".layer.2." in n:
                assert torch.equal(state[n], t)
        assert not torch.equal(
            state["bert.encoder.layer.1.output.dense.weight"], before["bert.encoder.layer.1.output.dense.weight"]
        )

    split(model, script, optimiser={"name": "sgd"})


def test_an_optimiser_made_before_the_split_is_refused(split):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def script(model, _):
        model(**batch()).loss.backward()
        with pytest.raises(ConfigError, match="after farshore.split"):
            optimizer.step()

    split(model, script)


def test_an_optimiser_of_something_else_commits_nothing(split):
    def script(model, attachment):
        other = torch.nn.Linear(2, 2)
        other(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        head = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
        model(**batch()).loss.backward()
        head.step()
        assert attachment.steps == 0

    split(classifier(), script)


# ---- modes, graphs, dropout


def test_evaluation_equals_the_whole_model_and_keeps_no_graph(split):
    whole = classifier(dropout=0.3)
    mine = copy.deepcopy(whole)

    def script(model, _):
        model.eval()
        with torch.no_grad():
            for seed in range(5):
                assert torch.equal(model(**batch(seed)).logits, whole.eval()(**batch(seed)).logits)
        assert split.cloud.graphs == {}
        model.train()
        assert not torch.equal(model(**batch()).logits, model(**batch()).logits)

    split(mine, script)


def test_forwards_without_a_backward_are_freed(split):
    def script(model, _):
        for seed in range(200):
            model(**batch(seed))
            assert len(split.cloud.graphs) <= 2
        gc.collect()
        with torch.no_grad():
            model(**batch())
        assert split.cloud.graphs == {}

    split(classifier(), script)


def test_losses_that_are_all_kept_end_in_a_clear_error(split):
    def script(model, _):
        kept = [model(**batch(seed)).loss for seed in range(9)]
        assert kept

    with pytest.raises(RunFailedError, match="wait for their backward"):
        split(classifier(), script, graphs=8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_in_the_cloud_depends_on_the_step_alone(split, attention):
    seen = []

    def script(model, _):
        torch.manual_seed(len(seen))
        model.bert.embeddings.eval()
        model.bert.encoder.layer[0].eval()
        model.bert.encoder.layer[4].eval()
        model.dropout.eval()
        before = torch.random.get_rng_state()
        one, other = model(**batch()).logits, model(**batch()).logits
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not torch.equal(one, other)
        seen.append((one.detach(), other.detach()))

    for _ in range(2):
        split(classifier(dropout=0.3, attention=attention), script)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


# ---- state


def test_a_state_goes_out_and_in_under_the_original_names(split):
    torch.manual_seed(9)
    other = classifier().state_dict()
    other = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in other.items()}

    def script(model, _):
        model.load_state_dict(other)
        assert all(torch.equal(t, other[n]) for n, t in model.state_dict().items())
        fresh = classifier()
        fresh.load_state_dict(model.state_dict())
        assert close(fresh(**batch()).logits, model(**batch()).logits)
        wrong = {**other, "bert.encoder.layer.2.output.dense.bias": torch.zeros(7)}
        with pytest.raises(RuntimeError, match="size mismatch for bert.encoder.layer.2.output.dense.bias"):
            model.load_state_dict(wrong)
        with pytest.raises(RuntimeError, match="Missing key.*layer.3.output.dense.bias"):
            model.load_state_dict({n: t for n, t in other.items() if "layer.3.output.dense.bias" not in n})
        with pytest.raises(RuntimeError, match="Unexpected key.*layer.2.surprise"):
            model.load_state_dict({**other, "bert.encoder.layer.2.surprise": torch.zeros(1)})

    split(classifier(), script)


def test_a_coded_model_continues_from_its_state(split):
    kept = {}

    def first(model, _):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(3):
            model(**batch(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        kept["state"] = model.state_dict()
        kept["logits"] = model.eval()(**batch()).logits.detach()

    def second(model, _):
        model.load_state_dict(kept["state"])
        assert close(model.eval()(**batch()).logits, kept["logits"])

    split(classifier(), first, rank=6, ragged=True)
    split(classifier(), second, rank=6, ragged=True)


# ---- codes


@pytest.mark.parametrize("ragged", [True, False])
def test_a_code_of_full_rank_starts_as_the_identity(split, ragged):
    whole = classifier()

    def script(model, _):
        assert close(model(**batch()).logits, whole(**batch()).logits, 1e-4)

    split(copy.deepcopy(whole), script, rank=32, ragged=ragged)


def test_principal_directions_beat_random_ones(split):
    whole = classifier().eval()
    wanted = whole(**batch()).logits
    error = {}

    def script(model, _):
        error[start] = float((model.eval()(**batch()).logits - wanted).norm().detach())

    for start in ("pca", "random"):
        split(copy.deepcopy(whole), script, start=start, rank=8, ragged=True)
    assert error["pca"] < 0.7 * error["random"]


@pytest.mark.parametrize(("encoding", "bits"), [("raw", 32), ("fp16", 16), ("int8", 8), ("int4", 4)])
def test_a_code_learns_and_travels_in_its_bits(split, encoding, bits):
    losses = []

    def script(model, _):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(25):
            loss = model(**batch()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))

    split(classifier(), script, rank=8, encoding=encoding, ragged=True)
    assert losses[-1] < 0.5 * losses[0]
    tokens = int(batch()["attention_mask"].sum())
    for kind in ("activation", "gradient"):
        for way in ("up", "down"):
            rows = [r for r in split.rows if r.kind == kind and r.direction == way]
            assert len(rows) == 25
            codes = tokens * 8 * bits / 8
            assert all(codes <= r.payload_bytes <= codes + 48 for r in rows), (kind, way, rows[0])


def test_neither_token_ids_nor_labels_travel(split):
    data = batch()

    def script(model, _):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model(**data).loss.backward()
        optimizer.step()

    split(classifier(), script, rank=4, ragged=True)
    assert {m.kind for m in split.sent} == {"weights", "codec", "activation", "gradient", "control"}
    names = {(m.kind, n) for m in split.sent if m.kind != "weights" for n in m.tensors}
    assert {n for kind, n in names if kind == "activation"} == {"codes", "lengths"}
    assert {n for kind, n in names if kind == "gradient"} == {"codes"}
    private = [data["input_ids"], data["labels"], data["input_ids"][data["attention_mask"] != 0]]
    for message in split.sent:
        for tensor in message.tensors.values():
            for secret in private:
                assert tensor.array.size != secret.numel() or not torch.equal(
                    torch.as_tensor(tensor.array.astype("float64")).flatten(), secret.double().flatten()
                )
        if message.kind == "weights":
            assert not any("embedding" in n for n in message.tensors)


# ---- what is refused


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (("bert.encoder.layer.0", "bert.encoder.layers.3"), "did you mean 'bert.encoder.layer.3'"),
        (("encoder.layer.0", "bert.encoder.layer.3"), "did you mean 'bert.encoder.layer.0'"),
        (("bert.encoder.layer.3", "bert.encoder.layer.3"), "does not come after"),
        (("bert.encoder.layer.0", "xyz"), "its blocks are bert.encoder.layer.0 to bert.encoder.layer.4"),
    ],
)
def test_a_wrong_block_is_answered_with_the_right_one(cut, said):
    with pytest.raises(ConfigError, match=said):
        Place.find(classifier(), cut)


def test_models_that_the_cloud_cannot_build_are_refused():
    place = Place("bert.encoder.layer", 1, 3)
    decoder = classifier()
    decoder.config.is_decoder = True
    with pytest.raises(ConfigError, match="is_decoder"):
        recipe_of(decoder, place)
    with pytest.raises(ConfigError, match="float32"):
        recipe_of(classifier().bfloat16(), place)
    odd = classifier()
    odd.config.hidden_act = "os.system"
    with pytest.raises(ConfigError, match="hidden_act"):
        recipe_of(odd, place)


def test_a_mask_that_is_more_than_padding_is_refused(split):
    def script(model, _):
        data = batch()
        square = data["attention_mask"][:, None, None, :].bool().expand(-1, 1, 9, -1).clone()
        square[0, 0, 3, 0] = False
        with pytest.raises(ConfigError, match="more than padding"):
            model(**{**data, "attention_mask": square})

    split(classifier(), script)


def test_keys_and_values_of_earlier_calls_are_refused(split):
    def script(model, _):
        with pytest.raises(ConfigError, match="use_cache=False"):
            model(**batch(), use_cache=True)

    split(classifier("gpt2"), script)


def test_a_closed_model_says_so(split):
    def script(model, attachment):
        attachment.close()
        with pytest.raises(PeerLostError, match="closed"):
            model(**batch())

    split(classifier(), script)


def test_a_segment_beyond_the_servers_memory_is_refused_before_it_is_built(split, monkeypatch):
    import psutil

    from farshore.algorithms.split_segment.segment import Segment

    recipe = recipe_of(classifier(), Place("bert.encoder.layer", 1, 3)).model_dump()
    recipe["shape"] |= {"hidden_size": 65_536, "intermediate_size": 65_536}
    recipe["last"] = 60
    before = psutil.Process().memory_info().rss
    with pytest.raises(ConfigError, match="GiB free"):
        Segment(SplitSegment(recipe=Recipe.model_validate(recipe)))
    assert psutil.Process().memory_info().rss - before < 200 << 20
