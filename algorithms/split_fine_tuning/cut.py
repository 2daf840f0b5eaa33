"""Cut a classifier into a front and a trunk, or build only the half that this machine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...engines.split.architectures import (
    Architecture,
    NoPositions,
    PassThrough,
    find_blocks,
    first_matrix,
    with_blocks,
)
from ...engines.split.factors import Basis, random_basis, svd_basis
from .backbone import LOADING, load_backbone
from .codec import Decoder, Encoder, FullProjection
from .front import Front, OpenedBlock, Tap
from .heads import Classifier, Pooling
from .plan import CutOptions, DecoderKind, How, Init, Residual, SplitPlan
from .trunk import Trunk


class SplitModel(NamedTuple):
    """The two halves and what they agreed on."""

    front: Front
    trunk: Trunk
    plan: SplitPlan


def cut(
    classifier: Classifier,
    *,
    block: int,
    how: How = "ffn_svd",
    rank: int | None = None,
    residual: Residual = "project",
    init: Init = "pca",
    seed: int = 0,
    decoder: DecoderKind = "linear",
    sentence_vector: int = 0,
) -> SplitModel:
    """Cut a classifier open at block ``block``; see :class:`~.plan.CutOptions` for the choices.

    The halves take over the classifier's modules, so the classifier must not be used afterwards (copy it
    before, if it must): no parameter is held by both halves.

    Raises
    ------
    ConfigError
        The choices do not fit the model or each other.
    """
    return cut_with(classifier, CutOptions(block, how, rank, residual, init, seed, decoder, sentence_vector))


def cut_with(classifier: Classifier, options: CutOptions) -> SplitModel:
    """:func:`cut` with the choices as one object."""
    plan = plan_for(classifier, options)
    model, family = classifier.backbone, classifier.family
    blocks = list(find_blocks(model)[1])
    mine, theirs = blocks[: options.block], blocks[options.block :]
    # Fresh layers draw from torch's global generator before they get their values: leave no trace of it.
    with torch.random.fork_rng(devices=[]), torch.device(model.device):
        opened = _open(mine, family, plan) if options.how in ("ffn", "ffn_svd") else _Opened(None, None, None)
        encoder = Encoder(plan) if options.compressed else None
        decoder = _decoder(plan)
    front = Front(plan, _front_model(model, mine, family), encoder)
    kept = opened.first if options.decoder == "mlp" else None
    trunk = Trunk(plan, decoder, kept, opened.rest, _trunk_model(model, theirs, family), classifier.head)
    if model.device.type != "meta":  # there, only shapes are asked for
        _start(front, trunk, opened.weights)
    if options.init == "pca" and opened.weights is not None and encoder is not None:
        weight, bias = opened.weights
        trunk.factorized = weight.detach().clone(), bias.detach().clone()
    front.train(classifier.training)
    trunk.train(classifier.training)
    return SplitModel(front, trunk, plan)


def plan_for(classifier: Classifier, options: CutOptions) -> SplitPlan:
    """The plan of a cut, checked; changes nothing."""
    model = classifier.backbone
    _, blocks = find_blocks(model)
    first = blocks[0].get_submodule(classifier.family.first)
    return SplitPlan(
        options=options,
        family=classifier.family.name,
        layers=classifier.origin.layers,
        hidden=int(model.config.hidden_size),
        ffn=first_matrix(first)[0].shape[0],
        classes=classifier.head.linear.out_features,
        head=classifier.head.pooling,
        fingerprint=classifier.origin.fingerprint,
    )


def build_front(
    source: str | Path, options: CutOptions, *, classes: int, head: Pooling = "auto", **backbone: Any
) -> tuple[Front, PreTrainedTokenizerBase]:
    """The edge's half, without ever reading the trunk's blocks into memory.

    Parameters
    ----------
    source
        As for :func:`~.backbone.load_backbone`, which also takes ``backbone``'s keywords (dropout,
        attention).
    options : CutOptions
    classes, head
        Part of the plan that both ends compare; the edge holds no head.
    """
    with LOADING:
        model, tokenizer = load_backbone(source, blocks=options.block, **backbone)
        return cut_with(Classifier(model, classes, head=head), options).front, tokenizer


def build_trunk(
    source: str | Path,
    options: CutOptions,
    *,
    classes: int,
    head: Pooling = "auto",
    dropout: float = 0.1,
    seed: int = 0,
    **backbone: Any,
) -> Trunk:
    """The cloud's half; the front's blocks and embeddings are freed before it returns.

    ``dropout`` and ``seed`` are the head's; the rest as for :func:`build_front`.
    """
    with LOADING:
        model, _ = load_backbone(source, **backbone)
        return cut_with(Classifier(model, classes, head=head, dropout=dropout, seed=seed), options).trunk


class _Opened(NamedTuple):
    first: nn.Module | None
    rest: nn.Module | None
    weights: tuple[Tensor, Tensor] | None


def _open(mine: list[nn.Module], family: Architecture, plan: SplitPlan) -> _Opened:
    """Take the last of ``mine`` apart: its rest leaves, a tap takes the first matrix's place."""
    block = mine[-1]
    first = block.get_submodule(family.first)
    weights = first_matrix(first)
    rest = family.rest(block)
    for path in family.rest_parts:
        _replace(block, path, nn.Identity())
    _replace(block, family.first, Tap(first if plan.options.how == "ffn" else None))
    mine[-1] = OpenedBlock(block)
    return _Opened(first, rest, weights)


def _decoder(plan: SplitPlan) -> Decoder | FullProjection | None:
    if plan.options.compressed:
        return Decoder(plan)
    return FullProjection(plan) if plan.options.how == "ffn" and plan.options.residual == "project" else None


def _front_model(model: PreTrainedModel, blocks: list[nn.Module], family: Architecture) -> PreTrainedModel:
    front = with_blocks(model, blocks)
    for name in family.tail:
        setattr(front, name, None if name == "pooler" else nn.Identity())
    return front


def _trunk_model(model: PreTrainedModel, blocks: list[nn.Module], family: Architecture) -> PreTrainedModel:
    trunk = with_blocks(model, blocks)
    for name in family.embeddings:
        stands_in: nn.Module = {"wpe": NoPositions, "drop": nn.Identity}.get(name, PassThrough)()
        setattr(trunk, name, stands_in)
    return trunk


def _start(front: Front, trunk: Trunk, weights: tuple[Tensor, Tensor] | None) -> None:
    """First values of the codec; for ``pca`` only until samples have been seen."""
    plan = front.plan
    if isinstance(trunk.codec, FullProjection) and weights is not None:
        trunk.codec.start(*weights)
    if front.codec is None or not isinstance(trunk.codec, Decoder):
        return
    basis: Basis
    if weights is None or plan.options.init == "random":
        basis = random_basis(plan.hidden, plan.width, plan.options.seed)
    else:
        basis = svd_basis(weights[0], plan.width)
    sentence = None
    if plan.options.sentence_vector:
        sentence = random_basis(plan.hidden, plan.options.sentence_vector, plan.options.seed + 1).v
    front.codec.start(basis, sentence)
    trunk.codec.start(basis, weights)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
