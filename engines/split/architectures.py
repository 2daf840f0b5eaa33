"""Supported transformer architectures: where each keeps its blocks, feed-forward matrices and norms.

Module names are those of transformers 5. ``docs/methods/split_fine_tuning.md``, section 2, says where blocks are cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...core.errors import ConfigError


class BertRest(nn.Module):
    """The part of a BERT or RoBERTa block after W1: activation, second matrix, residual, LayerNorm."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.activation = cast("Callable[[Tensor], Tensor]", block.get_submodule("intermediate").intermediate_act_fn)
        self.output = block.get_submodule("output")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """Map ``u`` [B, T, f] and ``residual`` ([B, T, d], or a scalar zero) to the block's output [B, T, d]."""
        y: Tensor = self.output(self.activation(u), residual)
        return y


class DistilBertRest(nn.Module):
    """The part of a DistilBERT block after W1."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        ffn = block.get_submodule("ffn")
        self.activation = cast("Callable[[Tensor], Tensor]", ffn.activation)
        self.second = ffn.get_submodule("lin2")
        self.dropout = ffn.get_submodule("dropout")
        self.norm = block.get_submodule("output_layer_norm")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """Map ``u`` [B, T, f] and ``residual`` ([B, T, d], or a scalar zero) to the block's output [B, T, d]."""
        y: Tensor = self.norm(self.dropout(self.second(self.activation(u))) + residual)
        return y


class Gpt2Rest(nn.Module):
    """The part of a GPT-2 block after W1; the residual is the residual stream itself, and no norm follows."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        mlp = block.get_submodule("mlp")
        self.activation = cast("Callable[[Tensor], Tensor]", mlp.act)
        self.second = mlp.get_submodule("c_proj")
        self.dropout = mlp.get_submodule("dropout")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """Map ``u`` [B, T, f] and ``residual`` ([B, T, d], or a scalar zero) to the block's output [B, T, d]."""
        y: Tensor = residual + self.dropout(self.second(self.activation(u)))
        return y


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names of the modules and config entries that matter for splitting a model type.

    Attributes
    ----------
    name : str
        ``config.model_type``.
    pre_norm : bool
        Whether a block normalizes its input (GPT-2) instead of its output (BERT).
    first : str
        Path, inside a block, of W1, the first matrix of the feed-forward network.
    rest : type
        Module class that computes the part of the block after W1.
    rest_parts : tuple[str, ...]
        Paths, inside a block, of the modules that ``rest`` takes over.
    embeddings, tail : tuple[str, ...]
        Modules of the model before and after its blocks.
    stream_norm : str
        Path, inside a block, of the norm whose input is the residual stream; empty if the residual is the input of
        ``first`` (post-norm models).
    hidden_dropout, attention_dropout : tuple[str, ...]
        Names of the dropout rates in the model's config.
    token_types : bool
        Whether the model takes ``token_type_ids``.
    """

    name: str
    pre_norm: bool
    first: str
    rest: type[nn.Module]
    rest_parts: tuple[str, ...]
    embeddings: tuple[str, ...]
    tail: tuple[str, ...]
    stream_norm: str
    hidden_dropout: tuple[str, ...]
    attention_dropout: tuple[str, ...]
    token_types: bool


def _bert(name: str) -> Architecture:
    return Architecture(
        name=name,
        pre_norm=False,
        first="intermediate.dense",
        rest=BertRest,
        rest_parts=("output",),
        embeddings=("embeddings",),
        tail=("pooler",),
        stream_norm="",
        hidden_dropout=("hidden_dropout_prob",),
        attention_dropout=("attention_probs_dropout_prob",),
        token_types=name == "bert",
    )


ARCHITECTURES: dict[str, Architecture] = {
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
    "distilbert": Architecture(
        name="distilbert",
        pre_norm=False,
        first="ffn.lin1",
        rest=DistilBertRest,
        rest_parts=("ffn.lin2", "ffn.dropout", "output_layer_norm"),
        embeddings=("embeddings",),
        tail=(),
        stream_norm="",
        hidden_dropout=("dropout",),
        attention_dropout=("attention_dropout",),
        token_types=False,
    ),
    "gpt2": Architecture(
        name="gpt2",
        pre_norm=True,
        first="mlp.c_fc",
        rest=Gpt2Rest,
        rest_parts=("mlp.c_proj", "mlp.dropout"),
        embeddings=("wte", "wpe", "drop"),
        tail=("ln_f",),
        stream_norm="ln_2",
        hidden_dropout=("resid_pdrop", "embd_pdrop"),
        attention_dropout=("attn_pdrop",),
        token_types=False,
    ),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a model with this config.

    Raises
    ------
    ConfigError
        The model type is not supported.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ConfigError(
            f"models of type '{config.model_type}' cannot be split",
            hint=f"use one of {', '.join(sorted(ARCHITECTURES))}",
        )
    return architecture


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of a model's blocks: its only ``ModuleList`` of ``config.num_hidden_layers`` items.

    Raises
    ------
    ConfigError
        No list has that length, or several do.
    """
    length = model.config.num_hidden_layers
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == length
    ]
    # A list inside a block (of experts, for example) may happen to have the same length: take the outermost.
    outer = [(p, m) for p, m in found if not any(p.startswith(f"{q}.") for q, _ in found)]
    if len(outer) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(outer)} module lists of length {length}, expected 1",
            hint="split a model whose blocks are in one nn.ModuleList",
        )
    return outer[0]


def first_matrix(first: nn.Module) -> tuple[Tensor, Tensor]:
    """Return W1 [f, d] and b1 [f] of a block's first feed-forward layer, transposed if it is stored as [d, f]."""
    weight, bias = cast(Tensor, first.weight), cast(Tensor, first.bias)
    # GPT-2's Conv1D keeps (in, out); nn.Linear keeps (out, in).
    return (weight if isinstance(first, nn.Linear) else weight.T), bias


def shallow_copy(module: nn.Module) -> Any:
    """Copy a module without its children and parameters: both are shared, and replacing them leaves the original."""
    clone = copy.copy(module)
    for name, value in list(vars(clone).items()):
        if isinstance(value, dict | set):
            vars(clone)[name] = copy.copy(value)
    return clone


def with_blocks(model: PreTrainedModel, blocks: list[nn.Module]) -> PreTrainedModel:
    """Return a shallow copy of ``model`` that runs ``blocks`` in place of its own."""
    path, _ = find_blocks(model)
    clone = cast(PreTrainedModel, shallow_copy(model))
    clone.config = copy.deepcopy(model.config)
    clone.config.num_hidden_layers = len(blocks)
    clone.config.use_cache = False
    parent: nn.Module = clone
    *outer, last = path.split(".")
    for name in outer:
        inner = shallow_copy(parent.get_submodule(name))
        setattr(parent, name, inner)
        parent = inner
    setattr(parent, last, nn.ModuleList(blocks))
    return clone


class PassThrough(nn.Module):
    """Replacement for an embedding layer that returns its first floating-point argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first floating-point argument unchanged."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        raise TypeError("expected hidden states, not token ids: this half of the model has no embeddings")


class NoPositions(nn.Module):
    """Replacement for position embeddings, which the received hidden states already include."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """Return zeros [..., 1], which broadcast over the hidden width."""
        return torch.zeros((*position_ids.shape, 1), device=position_ids.device)
