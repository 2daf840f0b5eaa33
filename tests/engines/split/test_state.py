"""State dicts keep the model's own names; codecs are initialized well, learn, and send the expected bytes."""

from __future__ import annotations

import copy

import pytest
import torch

from farshore.core.errors import ConfigError


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=tolerance)


def test_state_dict_is_saved_and_loaded_under_the_original_names(split, classifier, batch):
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
        with pytest.raises(RuntimeError, match=r"size mismatch for bert\.encoder\.layer\.2\.output\.dense\.bias"):
            model.load_state_dict(wrong)
        with pytest.raises(RuntimeError, match=r"Missing key.*layer\.3\.output\.dense\.bias"):
            model.load_state_dict({n: t for n, t in other.items() if "layer.3.output.dense.bias" not in n})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*layer\.2\.surprise"):
            model.load_state_dict({**other, "bert.encoder.layer.2.surprise": torch.zeros(1)})

    split(classifier(), script)


def test_a_model_with_a_codec_continues_from_its_state_dict(split, classifier, batch):
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


@pytest.mark.parametrize("ragged", [True, False])
def test_a_codec_of_full_rank_is_the_identity_at_first(split, ragged, classifier, batch):
    whole = classifier()

    def script(model, _):
        assert close(model(**batch()).logits, whole(**batch()).logits, 1e-4)

    split(copy.deepcopy(whole), script, rank=32, ragged=ragged)


def test_pca_initialization_is_closer_to_the_whole_model_than_a_random_one(split, classifier, batch):
    whole = classifier().eval()
    expected = whole(**batch()).logits
    error = {}

    def script(model, _):
        error[start] = float((model.eval()(**batch()).logits - expected).norm().detach())

    for start in ("pca", "random"):
        split(copy.deepcopy(whole), script, start=start, rank=8, ragged=True)
    assert error["pca"] < 0.7 * error["random"]


@pytest.mark.parametrize(("encoding", "bits"), [("raw", 32), ("fp16", 16), ("int8", 8), ("int4", 4)])
def test_a_codec_learns_and_its_codes_have_the_expected_bytes(split, encoding, bits, classifier, batch):
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


def test_token_ids_and_labels_are_never_sent(split, classifier, batch):
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


def test_save_pretrained_without_a_codec_is_the_trained_function(split, classifier, batch, tmp_path, caplog):
    def script(model, _):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model(**batch()).loss.backward()
        optimizer.step()
        model.save_pretrained(tmp_path / "saved")
        loaded = type(model).from_pretrained(tmp_path / "saved")
        assert close(loaded.eval()(**batch()).logits, model.eval()(**batch()).logits)

    split(classifier(), script)
    assert "codec" not in caplog.text


def test_save_pretrained_with_a_codec_says_what_is_lost(split, classifier, batch, tmp_path, caplog):
    def script(model, _):
        model.save_pretrained(tmp_path / "before")
        assert "differ from those of the split model" in caplog.text
        model.train()
        model(**batch())
        model.save_pretrained(tmp_path / "saved")
        assert model.training
        loaded = type(model).from_pretrained(tmp_path / "saved").eval()
        expected = model.eval()(**batch()).logits
        share = float(((loaded(**batch()).logits - expected).norm() / expected.norm()).detach())
        assert share > 0.01
        assert f"differ from the split model's by {100 * share:.1f} %" in caplog.text

    split(classifier(), script, rank=4, ragged=True)


def test_pickling_and_copying_are_refused_in_one_line(split, classifier, tmp_path):
    def script(model, _):
        for action in (lambda: torch.save(model, tmp_path / "model.pt"), lambda: copy.deepcopy(model)):
            with pytest.raises(ConfigError, match="cannot be pickled or copied") as caught:
                action()
            assert "state_dict" in str(caught.value.hint)
        torch.save(model.state_dict(), tmp_path / "state.pt")

    split(classifier(), script)
