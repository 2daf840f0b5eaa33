"""Joins front, codec, trunk and head to one plain transformers model that computes the same function.

The codec is linear, and so is what it changes in the block that is cut: the first feed-forward matrix W1 becomes
U·S·V, and the residual a becomes P·a + c. The first is another W1. The second is the plain residual plus (P - I)·a + c,
and a linear map can be written with the block's own activation: gelu(t) - gelu(-t) = t, and so for relu and gelu's
approximation. So the merged model has 2·d more feed-forward units, in each block, as a config has one width for all; in
the other blocks they are zero. Nothing is retrained, and nothing is approximated but rounding.

See ``docs/methods/split_fine_tuning.md``, section 15.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from ...core.errors import ConfigError
from ...engines.split.architectures import ARCHITECTURES, find_blocks
from .backbone import LOADING
from .codec import Decoder, FullProjection
from .front import Front, OpenedBlock
from .heads import Head
from .trunk import Trunk


@dataclass(frozen=True, slots=True)
class _Layout:
    """Names inside a block: the second matrix and its bias, and what of ``Trunk.rest`` belongs where."""

    second: str
    rest: Mapping[str, str]
    width: str


#: By model type; ``width`` is the config's entry of the feed-forward width.
_LAYOUTS = {
    "bert": _Layout("output.dense", {"output": "output"}, "intermediate_size"),
    "roberta": _Layout("output.dense", {"output": "output"}, "intermediate_size"),
    "distilbert": _Layout("ffn.lin2", {"second": "ffn.lin2", "norm": "output_layer_norm"}, "hidden_dim"),
    "gpt2": _Layout("mlp.c_proj", {"second": "mlp.c_proj"}, "n_inner"),
}

State = dict[str, Tensor]


def merge(front: Front, trunk: Trunk, pretrained: PreTrainedModel) -> tuple[PreTrainedModel, Head]:
    """Return the plain model and the head.

    Parameters
    ----------
    front, trunk
        The trained halves.
    pretrained : PreTrainedModel
        The whole model that they were made from: gives the config, and a pooler that the head does not use.

    Raises
    ------
    ConfigError
        The cut cannot be written as a plain model.
    """
    _check(trunk)
    path, blocks = find_blocks(pretrained)
    k, state = front.plan.options.block, {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    prefixes = [f"{path}.{index}." for index in range(len(blocks))]
    _copy_ends(state, front, trunk)
    for index, block in enumerate(find_blocks(front.model)[1]):
        if not isinstance(block, OpenedBlock):
            _copy(state, prefixes[index], block)
    for index, block in enumerate(find_blocks(trunk.model)[1]):
        _copy(state, prefixes[k + index], block)
    config = copy.deepcopy(pretrained.config)
    if trunk.rest is not None:
        extra = _opened_block(state, prefixes[k - 1], front, trunk)
        if extra is not None:
            setattr(config, _LAYOUTS[front.plan.family].width, front.plan.ffn + len(extra[0]))
            _widen(state, prefixes, k - 1, front.plan.family, *extra)
    with LOADING, torch.random.fork_rng(devices=[]):
        merged: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    if getattr(pretrained, "pooler", None) is None and getattr(merged, "pooler", None) is not None:
        cast(Any, merged).pooler = None
    merged.load_state_dict(state, strict=True)
    merged.train(False)
    return merged, trunk.head.eval()


def _check(trunk: Trunk) -> None:
    options, pre_norm = trunk.plan.options, ARCHITECTURES[trunk.plan.family].pre_norm
    why = ""
    if options.sentence_vector:
        why = "sentence_vector adds a vector of the whole sentence to each token"
    elif options.decoder == "mlp":
        why = "decoder=mlp is a network between two blocks"
    elif options.how == "codec":
        why = "cut=codec changes what the next block's attention and residual receive"
    elif pre_norm and options.how != "boundary":
        why = "a pre-norm block passes on what the code was not made from"
    if why:
        raise ConfigError(
            f"this split model cannot be written as a plain transformer: {why}",
            hint="train with cut=ffn_svd, decoder=linear and sentence_vector=0, which are the defaults",
        )


def _copy_ends(state: State, front: Front, trunk: Trunk) -> None:
    """Copy the embeddings of the front, and the final norm or pooler of the trunk."""
    architecture = ARCHITECTURES[front.plan.family]
    for name in architecture.embeddings:
        _copy(state, f"{name}.", front.model.get_submodule(name))
    for name in architecture.tail:
        if isinstance(module := getattr(trunk.model, name, None), nn.Module):
            _copy(state, f"{name}.", module)


def _copy(state: State, prefix: str, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        state[prefix + name] = tensor.clone()


def _opened_block(state: State, prefix: str, front: Front, trunk: Trunk) -> tuple[Tensor, Tensor, Tensor] | None:
    """Write the block that is cut; return rows of W1 and columns of W2 to add, and a summand of W2's bias."""
    plan, architecture = front.plan, ARCHITECTURES[front.plan.family]
    opened = list(find_blocks(front.model)[1])[-1]
    assert isinstance(opened, OpenedBlock)
    for name, tensor in opened.block.state_dict().items():
        if not name.startswith(f"{architecture.first}."):
            state[prefix + name] = tensor.clone()
    for attribute, place in _LAYOUTS[plan.family].rest.items():
        _copy(state, f"{prefix}{place}.", trunk.rest.get_submodule(attribute))  # type: ignore[union-attr]
    if isinstance(trunk.codec, Decoder):
        assert front.codec is not None
        assert trunk.codec.expand is not None
        code = front.codec.scales.weight.double() @ front.codec.directions.weight.double()  # [r, d]
        first, bias = trunk.codec.expand.weight.double() @ code, trunk.codec.expand.bias.double()
        rebuilt = trunk.codec.residual
        projection = None if rebuilt is None else rebuilt.weight.double() @ code
        offset = None if rebuilt is None else rebuilt.bias.double()
    else:  # the edge keeps W1
        kept: Any = opened.block.get_submodule(architecture.first).keep
        first, bias = kept.weight.double(), kept.bias.double()
        whole = trunk.codec.residual if isinstance(trunk.codec, FullProjection) else None
        projection = None if whole is None else whole.weight.double() @ first
        offset = None if whole is None else whole.weight.double() @ bias + whole.bias.double()
    state[f"{prefix}{architecture.first}.weight"] = first.float()
    state[f"{prefix}{architecture.first}.bias"] = bias.float()
    return _correction(projection, offset, plan.hidden, keep=plan.options.residual == "project")


def _correction(
    projection: Tensor | None, offset: Tensor | None, width: int, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what adds (P - I)·a + c to the block: rows [2 d, d], columns [d, 2 d], c [d]; P = 0 if it is dropped."""
    identity = torch.eye(width, dtype=torch.float64)
    change = (projection if keep and projection is not None else torch.zeros_like(identity)) - identity
    added = offset if keep and offset is not None else torch.zeros(width, dtype=torch.float64)
    return torch.cat([change, -change]).float(), torch.cat([identity, -identity], dim=1).float(), added.float()


def _widen(
    state: State, prefixes: list[str], index: int, family: str, rows: Tensor, columns: Tensor, offset: Tensor
) -> None:
    """Add feed-forward units to every block: ``rows`` and ``columns`` to block ``index``, zeros to the others."""
    first, second = ARCHITECTURES[family].first, _LAYOUTS[family].second
    for position, prefix in enumerate(prefixes):
        here = position == index
        weight, bias, out = f"{prefix}{first}.weight", f"{prefix}{first}.bias", f"{prefix}{second}.weight"
        state[weight] = torch.cat([state[weight], rows if here else torch.zeros_like(rows)])
        state[bias] = torch.cat([state[bias], torch.zeros(len(rows))])
        state[out] = torch.cat([state[out], columns if here else torch.zeros_like(columns)], dim=1)
        if here:
            state[f"{prefix}{second}.bias"] = state[f"{prefix}{second}.bias"] + offset
