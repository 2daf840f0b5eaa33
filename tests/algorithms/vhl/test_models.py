"""Models of VHL: exact sizes, seeded weights, widened and natural heads, batch norm modes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from farshore.algorithms.vhl.batch_norm import forward_both
from farshore.algorithms.vhl.heads import natural_model, widen_head
from farshore.core.errors import ConfigError
from farshore.models.image_classifiers import build
from farshore.models.initialization import initialize
from farshore.models.resnet import resnet
from farshore.models.small import conv3, lenet

# depth, outputs, channels, params, BN floats, int64, tensors, P, MACs: docs/methods/vhl.md, section 8.
SIZES = [
    (10, 20, 3, 4_908_372, 5_760, 12, 74, 19_656_624, 253_437_952),
    (18, 10, 3, 11_173_962, 9_600, 20, 122, 44_734_408, 555_422_720),
    (18, 20, 3, 11_179_092, 9_600, 20, 122, 44_754_928, 555_427_840),
    (18, 20, 1, 11_177_940, 9_600, 20, 122, 44_750_320, 554_248_192),
    (50, 100, 3, 23_705_252, 53_120, 53, 320, 95_033_912, 1_298_014_208),
    (50, 200, 3, 23_910_152, 53_120, 53, 320, 95_853_512, 1_298_219_008),
]


@dataclass(frozen=True, slots=True)
class StateSize:
    """Sizes of a model's state.

    Attributes
    ----------
    parameters, buffers, integers : int
        Elements of parameters, of floating-point buffers and of int64 counters.
    tensors : int
    nbytes : int
        P, bytes on the wire: 4 per fp32 element and 8 per counter.
    """

    parameters: int
    buffers: int
    integers: int
    tensors: int
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module) -> StateSize:
        """Sizes of ``model``, which may be on the meta device."""
        state = model.state_dict()
        floats = sum(t.numel() for t in state.values() if t.is_floating_point())
        integers = sum(t.numel() for t in state.values() if not t.is_floating_point())
        parameters = sum(p.numel() for p in model.parameters())
        return cls(parameters, floats - parameters, integers, len(state), sum(t.nbytes for t in state.values()))


def images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("depth", "outputs", "channels", "parameters", "buffers", "integers", "tensors", "p", "macs"), SIZES
)
def test_resnets_have_the_published_sizes(depth, outputs, channels, parameters, buffers, integers, tensors, p, macs):
    with torch.device("meta"):
        model = resnet(depth, outputs, channels).eval()
        assert StateSize.of(model) == StateSize(parameters, buffers, integers, tensors, p)
        with FlopCounterMode(display=False) as counter:
            logits, features = model(torch.empty(1, channels, 32, 32))
    assert counter.get_total_flops() == 2 * macs
    assert logits.shape == (1, outputs)
    assert features.shape == (1, 2048 if depth == 50 else 512)


def test_with_group_norm_a_state_has_no_buffers():
    with torch.device("meta"):
        size = StateSize.of(resnet(18, 10, norm="group"))
    assert (size.parameters, size.buffers, size.integers) == (11_173_962, 0, 0)
    assert size.nbytes == 4 * 11_173_962


def test_small_models_have_the_documented_sizes():
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 64)
    assert StateSize.of(conv3(10, 1)).parameters == convolutions + 2 * (16 + 32 + 64) + 65 * 10
    assert StateSize.of(conv3(10, 1)).buffers == 2 * (16 + 32 + 64)
    assert StateSize.of(lenet(10)).parameters == 62_006  # NIID-Bench's simple CNN
    logits, features = conv3(10, 1, widths=(24, 48, 96))(images(3, 1))
    assert (logits.shape, features.shape) == ((3, 10), (3, 96))
    assert [part[0][0].stride for part in conv3(10, 1).stages] == [(1, 1), (2, 2), (2, 2)]
    logits, features = lenet(10, 1, 28)(images(3, 1, 28))
    assert (logits.shape, features.shape) == ((3, 10), (3, 84))


@pytest.mark.parametrize("name", ["conv3", "lenet", "resnet10"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_returned_features_are_the_input_of_the_head(name, norm):
    model = build(name, 5, 1, norm=norm, seed=3, size=16).eval()
    logits, features = model(images(4, 1, 16))
    assert torch.equal(model.linear(features), logits)
    assert isinstance(model.linear, nn.Linear)
    assert bool((features >= 0).all())
    assert float(features.detach().std()) > 0
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)}
    assert kinds == (set() if name == "lenet" else {nn.BatchNorm2d} if norm == "batch" else {nn.GroupNorm})


def test_group_norms_have_groups_of_several_channels():
    groups = {m.num_channels: m.num_groups for m in resnet(18, 10, norm="group").modules() if type(m) is nn.GroupNorm}
    assert groups == {64: 16, 128: 32, 256: 32, 512: 32}
    small = {
        m.num_channels: m.num_groups
        for m in conv3(9, widths=(6, 24, 33), norm="group").modules()
        if type(m) is nn.GroupNorm
    }
    assert small == {6: 1, 24: 6, 33: 3}


def test_features_of_an_earlier_stage_can_be_returned_without_changing_the_logits():
    model = build("conv3", 5, 1, seed=3).eval()
    logits, _ = model(images(4, 1))
    model.feature_layer = 2
    again, features = model(images(4, 1))
    assert torch.equal(logits, again)
    assert torch.equal(features, model.stages[1](model.stages[0](images(4, 1))).mean(dim=(2, 3)))


def test_initial_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = build("resnet10", 10, seed=7)
    widen_head(model, 10, seed=7)
    natural_model(model, 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = build("resnet10", 10, seed=7), build("resnet10", 10, seed=8)
    widen_head(same, 10, seed=7)
    state, same_state = model.state_dict(), same.state_dict()
    assert all(torch.equal(state[name], same_state[name]) for name in same_state)
    drawn = [name for name, p in other.named_parameters() if p.dim() > 1]
    assert not any(torch.equal(state[name][:10], other.state_dict()[name][:10]) for name in drawn)


def test_initial_weights_have_the_distribution_of_pytorch():
    seeded, reference_model = build("lenet", 10, seed=0).requires_grad_(False), lenet(10).requires_grad_(False)
    for parameter, reference in zip(seeded.parameters(), reference_model.parameters(), strict=True):
        if parameter.numel() > 1000:
            assert float(parameter.std()) == pytest.approx(float(reference.std()), rel=0.1)
            assert float(parameter.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.05)
            assert abs(float(parameter.mean())) < 0.1 * float(parameter.std())
    norm = build("conv3", 10, seed=0).stages[0][0][1]
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.running_var, torch.ones(16))
    assert not norm.bias.any()
    assert not norm.running_mean.any()
    assert int(norm.num_batches_tracked) == 0
    with pytest.raises(TypeError, match="Embedding"):
        initialize(nn.Sequential(nn.Embedding(3, 4)), torch.Generator())


def test_models_with_and_without_virtual_outputs_have_the_same_initial_weights():
    """FedAvg and VHL can thus be compared from the same initialization."""
    narrow, wide = build("conv3", 10, seed=7), build("conv3", 20, seed=7)
    widened = build("conv3", 10, seed=7)
    widen_head(widened, 10, seed=7)
    for (name, a), b, c in zip(narrow.named_parameters(), wide.parameters(), widened.parameters(), strict=True):
        assert torch.equal(a, c[: len(a)])
        if not name.startswith("linear"):
            assert torch.equal(a, b)


def test_a_widened_head_keeps_its_logits_and_is_trainable():
    model = build("conv3", 10, 1, seed=7).eval()
    before, features = model(images(6, 1))
    widen_head(model, 4, seed=1)
    after, _ = model(images(6, 1))
    assert after.shape == (6, 14)
    assert torch.allclose(after[:, :10], before, atol=1e-6)
    bound = 1 / 64**0.5
    new = model.linear.weight[10:].detach()
    assert 0.9 * bound < float(new.abs().max()) <= bound
    assert float(new.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)
    after[:, 10:].sum().backward()
    assert torch.allclose(model.linear.weight.grad[10], features.detach().sum(0), atol=1e-5)
    other, bare = build("conv3", 10, 1, seed=7), nn.Sequential(nn.Linear(3, 3))
    widen_head(other, 4, seed=2)
    assert not torch.equal(other.linear.weight[10:], new)
    with pytest.raises(ConfigError, match="'linear'"):
        widen_head(bare, 4, seed=1)


def test_a_head_without_bias_is_widened_without_bias():
    model = nn.ModuleDict({"linear": nn.Linear(3, 2, bias=False)})
    widen_head(model, 2, seed=1)
    assert model["linear"].weight.shape == (4, 3)
    assert model["linear"].bias is None
    assert natural_model(model, 2)["linear"].bias is None


def test_natural_model_predicts_the_argmax_of_the_natural_outputs():
    model = build("conv3", 4, 1, seed=7).eval()
    widen_head(model, 4, seed=1)
    x = images(200, 1)
    with torch.no_grad():
        model.linear.bias -= model(x)[0].mean(0)  # so that every output, virtual ones too, is largest for some images
    natural = natural_model(model, 4)
    logits, _ = model(x)
    exported, _ = natural(x)
    assert exported.shape == (200, 4)
    assert int((logits.argmax(1) >= 4).sum()) > 20
    assert len(logits[:, :4].argmax(1).unique()) == 4
    assert torch.equal(exported.argmax(1), logits[:, :4].argmax(1))
    with torch.no_grad():
        natural.linear.weight.zero_()
        natural.stages[0][0][0].weight.zero_()
    assert torch.equal(model(x)[0], logits)  # the natural model is a copy
    with pytest.raises(ConfigError, match="fewer than 9"):
        natural_model(model, 9)


def test_mixed_uses_statistics_of_both_halves_and_split_those_of_the_natural_half():
    x, x_v = images(6, 1, seed=1), 3 + images(8, 1, seed=2)
    start = build("conv3", 5, 1, seed=7)
    runs = {mode: copy.deepcopy(start) for mode in ("mixed", "split", "natural")}
    mixed, _ = forward_both(runs["mixed"], x, x_v)
    split, features = forward_both(runs["split"], x, x_v, "split")
    natural, _ = runs["natural"](x)
    assert torch.equal(split[:6], natural)
    assert torch.equal(split[6:], copy.deepcopy(start)(x_v)[0])
    assert features.shape == (14, 64)
    buffers = {mode: dict(model.named_buffers()) for mode, model in runs.items()}
    assert all(torch.equal(buffers["split"][n], b) for n, b in buffers["natural"].items())
    means = [n for n in buffers["mixed"] if n.endswith("running_mean")]
    assert not any(torch.allclose(buffers["mixed"][n], buffers["natural"][n]) for n in means)
    assert torch.equal(mixed, copy.deepcopy(start)(torch.cat([x, x_v]))[0])
    assert not torch.allclose(mixed[:6], natural, atol=1e-3)
    runs["split"](x)  # statistics are updated again afterwards
    assert not any(torch.equal(b, buffers["natural"][n]) for n, b in runs["split"].named_buffers())


def test_without_batch_norm_both_modes_are_equal():
    model = build("conv3", 5, 1, norm="group", seed=7)
    x, x_v = images(6, 1, seed=1), images(8, 1, seed=2)
    for a, b in zip(forward_both(model, x, x_v), forward_both(model, x, x_v, "split"), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_unknown_models_and_too_small_images_are_refused():
    with pytest.raises(ConfigError, match="resnet34"):
        build("resnet34", 10, seed=0)
    with pytest.raises(ConfigError, match="not 8 x 8"):
        build("lenet", 10, size=8, seed=0)
