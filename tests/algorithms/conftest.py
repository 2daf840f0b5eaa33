"""Tiny random models of every family, and a padded batch; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from farshore.algorithms.split_fine_tuning.heads import Classifier

VOCABULARY, PAD = 99, 1
Batch = dict[str, torch.Tensor]


def _backbone(family: str, dropout: float, attention: str) -> Any:
    import transformers as t

    common = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    bert = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    bert |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    distil = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
    distil |= {"dropout": dropout, "attention_dropout": dropout}
    gpt = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 64}
    gpt |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    model, config = {
        "bert": (t.BertModel, t.BertConfig(**bert, **common)),
        "roberta": (t.RobertaModel, t.RobertaConfig(**bert, **common)),
        "distilbert": (t.DistilBertModel, t.DistilBertConfig(**distil, **common)),
        "gpt2": (t.GPT2Model, t.GPT2Config(**gpt, **common)),
    }[family]
    config._attn_implementation = attention
    return model(config)


@pytest.fixture
def tiny() -> Callable[..., Classifier]:
    """``tiny(family, dropout=0.0, attention="sdpa", head="auto", scale=10.0)``: a 4-block classifier with
    d=32, f=64.

    Weights are ``scale`` times larger than the library's, so that every part of the model matters to the
    output.
    """

    def build(
        family: str = "bert",
        dropout: float = 0.0,
        attention: str = "sdpa",
        head: Any = "auto",
        scale: float = 10.0,
    ) -> Classifier:
        torch.manual_seed(5)
        backbone = _backbone(family, dropout, attention)
        with torch.no_grad():
            for name, p in backbone.named_parameters():
                if p.dim() > 1:
                    p.mul_(scale)
                elif name.endswith("bias"):
                    p.normal_(0, 0.1)
                else:
                    p.normal_(1, 0.1)
        return Classifier(backbone, 3, head=head, dropout=dropout, seed=1)

    return build


@pytest.fixture
def batch() -> Batch:
    """Six sentences of 3 to 9 tokens, padded on the right, with labels of three classes."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([9, 6, 3, 8, 5, 7])
    ids = torch.randint(3, VOCABULARY, (6, 9), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids[mask == 0] = PAD
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 1, 0, 2])}
