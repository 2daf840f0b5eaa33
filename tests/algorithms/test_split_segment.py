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
from farshore.algorithms.split_segment.config import SplitSegment
from farshore.algorithms.split_segment.workload import WORKLOAD
from farshore.core.errors import ConfigError, FarshoreError
from farshore.core.transfer import Transfer
from farshore.simulations.in_process import InProcessRun

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]
PREFIX = {"bert": "bert.encoder.layer", "roberta": "roberta.encoder.layer", "distilbert": "distilbert.transformer.layer"}
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
            server_program = staticmethod(WORKLOAD.server_program)

            @staticmethod
            def node_program(session: Any, _: Any) -> None:
                with attach(model, place, config, session, start) as attachment:
                    model.attachment = attachment
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
            losses.append(float(loss))
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
