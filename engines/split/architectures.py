"""What the model families share and where they differ: block lists, first matrices, what follows them.

Source: specification of split fine-tuning §4; names as in transformers 5.
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
    """What follows the first matrix of a BERT or RoBERTa block: activation, second matrix, residual,
    LayerNorm."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.activation = cast("Callable[[Tensor], Tensor]", block.get_submodule("intermediate").intermediate_act_fn)
        self.output = block.get_submodule("output")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """``u`` [B, T, f] and ``residual`` [B, T, d] or a zero scalar to the block's output [B, T, d]."""
        y: Tensor = self.output(self.activation(u), residual)
        return y


class DistilBertRest(nn.Module):
    """What follows the first matrix of a DistilBERT block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        ffn = block.get_submodule("ffn")
        self.activation = cast("Callable[[Tensor], Tensor]", ffn.activation)
        self.second = ffn.get_submodule("lin2")
        self.dropout = ffn.get_submodule("dropout")
        self.norm = block.get_submodule("output_layer_norm")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """``u`` [B, T, f] and ``residual`` [B, T, d] or a zero scalar to the block's output [B, T, d]."""
        y: Tensor = self.norm(self.dropout(self.second(self.activation(u))) + residual)
        return y


class Gpt2Rest(nn.Module):
    """What follows the first matrix of a GPT-2 block; the residual is the stream itself, no norm follows."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        mlp = block.get_submodule("mlp")
        self.activation = cast("Callable[[Tensor], Tensor]", mlp.act)
        self.second = mlp.get_submodule("c_proj")
        self.dropout = mlp.get_submodule("dropout")

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        """``u`` [B, T, f] and ``residual`` [B, T, d] or a zero scalar to the block's output [B, T, d]."""
        y: Tensor = residual + self.dropout(self.second(self.activation(u)))
        return y


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a family of models keeps its parts.

    Attributes
    ----------
    name : str
        ``config.model_type``.
    pre_norm : bool
        Whether a block normalizes its input (GPT-2) instead of its output (BERT).
    first : str
        Path, inside a block, of the first matrix of the feed-forward network.
    rest : type
        Module that takes over what follows the first matrix.
    rest_parts : tuple[str, ...]
        Paths, inside a block, of the modules that ``rest`` takes away.
    embeddings, tail : tuple[str, ...]
        Modules of the model before and after its blocks.
    stream_norm : str
        Path, inside a block, of the module whose input is what the residual adds; empty where that is the
        input of ``first``.
    hidden_dropout, attention_dropout : tuple[str, ...]
        Names of the dropout rates in the config.
    token_types : bool
        Whether the model distinguishes the two sentences of a pair.
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
    """The family of a model with this config.

    Raises
    ------
    ConfigError
        The model type is not one that can be split.
    """
    family = ARCHITECTURES.get(config.model_type)
    if family is None:
        raise ConfigError(
            f"models of type '{config.model_type}' cannot be split",
            hint=f"use one of {', '.join(sorted(ARCHITECTURES))}",
        )
    return family


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of a model's blocks: the one ``ModuleList`` as long as ``config.num_hidden_layers``.

    Raises
    ------
    ConfigError
        No list, or more than one, has that length.
    """
    length = model.config.num_hidden_layers
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == length
    ]
    # Lists inside a block (say, of experts) may be as long by accident: the outermost is meant.
    outer = [(p, m) for p, m in found if not any(p.startswith(f"{q}.") for q, _ in found)]
    if len(outer) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(outer)} module lists of length {length}, one is needed",
            hint="split a model whose blocks are one module list",
        )
    return outer[0]


def first_matrix(first: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight W1 [f, d] and bias b1 [f] of a block's first matrix, whichever way round the library stores
    it."""
    weight, bias = cast(Tensor, first.weight), cast(Tensor, first.bias)
    # GPT-2's Conv1D keeps (in, out); nn.Linear keeps (out, in).
    return (weight if isinstance(first, nn.Linear) else weight.T), bias


def shell(module: nn.Module) -> Any:
    """A copy of a module that shares its children and parameters but may replace them without changing the
    original."""
    clone = copy.copy(module)
    for name, value in list(vars(clone).items()):
        if isinstance(value, dict | set):
            vars(clone)[name] = copy.copy(value)
    return clone


def with_blocks(model: PreTrainedModel, blocks: list[nn.Module]) -> PreTrainedModel:
    """A shell of ``model`` that runs ``blocks`` instead of its own; nothing else changes."""
    path, _ = find_blocks(model)
    clone = cast(PreTrainedModel, shell(model))
    clone.config = copy.deepcopy(model.config)
    clone.config.num_hidden_layers = len(blocks)
    clone.config.use_cache = False
    parent: nn.Module = clone
    *outer, last = path.split(".")
    for name in outer:
        inner = shell(parent.get_submodule(name))
        setattr(parent, name, inner)
        parent = inner
    setattr(parent, last, nn.ModuleList(blocks))
    return clone


class PassThrough(nn.Module):
    """Stands in for embeddings: returns the float tensor it is given, whatever its argument is called."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first floating-point argument, unchanged."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        raise TypeError("a trunk takes hidden states, not token ids")


class NoPositions(nn.Module):
    """Stands in for position embeddings whose sum is already in the received hidden states."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """Zeros [..., 1], which broadcast over the hidden width."""
        return torch.zeros((*position_ids.shape, 1), device=position_ids.device)
