"""Split a classifier into front and trunk, or build one of the halves."""

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
from .plan import CutKind, CutOptions, DecoderKind, Init, Residual, SplitPlan
from .trunk import Trunk


class SplitModel(NamedTuple):
    """Both halves of a model and their plan."""

    front: Front
    trunk: Trunk
    plan: SplitPlan


def cut(
    classifier: Classifier,
    *,
    block: int,
    how: CutKind = "ffn_svd",
    rank: int | None = None,
    residual: Residual = "project",
    init: Init = "pca",
    seed: int = 0,
    decoder: DecoderKind = "linear",
    sentence_vector: int = 0,
) -> SplitModel:
    """Split a classifier in block ``block``; :class:`~.plan.CutOptions` explains the options.

    The halves take over the classifier's modules: do not use the classifier afterwards (or pass a copy). The halves
    share no parameter.

    Raises
    ------
    ConfigError
        The options do not fit the model or each other.
    """
    return cut_with_options(classifier, CutOptions(block, how, rank, residual, init, seed, decoder, sentence_vector))


def cut_with_options(classifier: Classifier, options: CutOptions) -> SplitModel:
    """Split a classifier; as :func:`cut`, with the options as one object."""
    plan = plan_for(classifier, options)
    model, architecture = classifier.backbone, classifier.architecture
    blocks = list(find_blocks(model)[1])
    front_blocks, trunk_blocks = blocks[: options.block], blocks[options.block :]
    # New layers draw from torch's global generator before they are initialized: restore its state.
    with torch.random.fork_rng(devices=[]), torch.device(model.device):
        opens_block = options.how in ("ffn", "ffn_svd")
        opened = _open_block(front_blocks, architecture, plan) if opens_block else _Opened(None, None, None)
        encoder = Encoder(plan) if options.compressed else None
        decoder = _decoder(plan)
    front = Front(plan, _front_model(model, front_blocks, architecture), encoder)
    kept = opened.first if options.decoder == "mlp" else None
    trunk = Trunk(plan, decoder, kept, opened.rest, _trunk_model(model, trunk_blocks, architecture), classifier.head)
    if model.device.type != "meta":  # shapes only
        _initialize(front, trunk, opened.weights)
    if options.init == "pca" and opened.weights is not None and encoder is not None:
        weight, bias = opened.weights
        trunk.factorized = weight.detach().clone(), bias.detach().clone()
    front.train(classifier.training)
    trunk.train(classifier.training)
    return SplitModel(front, trunk, plan)


def plan_for(classifier: Classifier, options: CutOptions) -> SplitPlan:
    """Return the checked plan of a cut; the classifier is not changed."""
    model = classifier.backbone
    _, blocks = find_blocks(model)
    first = blocks[0].get_submodule(classifier.architecture.first)
    return SplitPlan(
        options=options,
        family=classifier.architecture.name,
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
    """Build the edge's half and its tokenizer, without reading the trunk's blocks into memory.

    Parameters
    ----------
    source
        Passed to :func:`~.backbone.load_backbone`, as are the keywords ``backbone`` (dropout, attention).
    options : CutOptions
    classes, head
        Part of the plan that both sides compare; the edge has no head.
    """
    with LOADING:
        model, tokenizer = load_backbone(source, blocks=options.block, **backbone)
        return cut_with_options(Classifier(model, classes, head=head), options).front, tokenizer


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
    """Build the cloud's half; the front's blocks and embeddings are freed before it returns.

    ``dropout`` and ``seed`` are those of the head; the other parameters are as in :func:`build_front`.
    """
    with LOADING:
        model, _ = load_backbone(source, **backbone)
        return cut_with_options(Classifier(model, classes, head=head, dropout=dropout, seed=seed), options).trunk


class _Opened(NamedTuple):
    first: nn.Module | None
    rest: nn.Module | None
    weights: tuple[Tensor, Tensor] | None


def _open_block(front_blocks: list[nn.Module], architecture: Architecture, plan: SplitPlan) -> _Opened:
    """Replace W1 of the last front block by a tap, and take out the part of the block after it."""
    block = front_blocks[-1]
    first = block.get_submodule(architecture.first)
    weights = first_matrix(first)
    rest = architecture.rest(block)
    for path in architecture.rest_parts:
        _replace(block, path, nn.Identity())
    _replace(block, architecture.first, Tap(first if plan.options.how == "ffn" else None))
    front_blocks[-1] = OpenedBlock(block)
    return _Opened(first, rest, weights)


def _decoder(plan: SplitPlan) -> Decoder | FullProjection | None:
    if plan.options.compressed:
        return Decoder(plan)
    return FullProjection(plan) if plan.options.how == "ffn" and plan.options.residual == "project" else None


def _front_model(model: PreTrainedModel, blocks: list[nn.Module], architecture: Architecture) -> PreTrainedModel:
    front = with_blocks(model, blocks)
    for name in architecture.tail:
        setattr(front, name, None if name == "pooler" else nn.Identity())
    return front


def _trunk_model(model: PreTrainedModel, blocks: list[nn.Module], architecture: Architecture) -> PreTrainedModel:
    trunk = with_blocks(model, blocks)
    for name in architecture.embeddings:
        replacement: nn.Module = {"wpe": NoPositions, "drop": nn.Identity}.get(name, PassThrough)()
        setattr(trunk, name, replacement)
    return trunk


def _initialize(front: Front, trunk: Trunk, weights: tuple[Tensor, Tensor] | None) -> None:
    """Initialize the codec on both sides; ``init=pca`` replaces the values after calibration."""
    plan = front.plan
    if isinstance(trunk.codec, FullProjection) and weights is not None:
        trunk.codec.initialize(*weights)
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
    front.codec.initialize(basis, sentence)
    trunk.codec.initialize(basis, weights)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
