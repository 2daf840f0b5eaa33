"""What each program is built of: the task's examples, and of the cut model only the half that is needed here."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig

from ...core.message import Array
from ...core.seeds import Seed
from ...data.batches import Batch, BatchPlan, evaluation_batches, make_batch, natural_steps
from ...data.metrics import score
from ...data.registry import task as task_entry
from ...data.text import EncodedSet, Tokenizer, encode
from .backbone import LOADING, load_backbone, model_folder
from .config import SplitFineTuning
from .cut import build_front, build_trunk
from .front import Front
from .heads import Classifier
from .plan import CutOptions
from .trunk import Trunk

DataLookup = Callable[[str], Path]
Inputs = Mapping[str, torch.Tensor]
#: Sentences of an evaluation's messages.
EVALUATION_BATCH = 64


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as a model's arguments: ``input_ids``, ``attention_mask``, for pairs ``token_type_ids``; each [B, T]."""
    inputs = {
        "input_ids": torch.from_numpy(batch.input_ids),
        "attention_mask": torch.from_numpy(batch.attention_mask),
    }
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = torch.from_numpy(batch.token_type_ids)
    return inputs


class TaskData:
    """A task's examples in the model's tokens.

    Parameters
    ----------
    config : SplitFineTuning
    seed : Seed
        Of the run: which examples are drawn when not all are used.
    lookup : callable
        Path of a data set by name.
    tokenizer : transformers fast tokenizer
    """

    def __init__(self, config: SplitFineTuning, seed: Seed, lookup: DataLookup, tokenizer: Tokenizer) -> None:
        entry = task_entry(config.task)
        task = entry.load(lookup, seed.child("task"))
        self.metric = task.metric
        self.labels = task.labels
        self.classes = len(task.labels)
        self.max_length = config.max_length or entry.max_length
        self._seed = seed
        train = encode(task.train, tokenizer, self.max_length)
        dev = encode(task.dev, tokenizer, self.max_length)
        self.spare: EncodedSet | None = None
        if 0 < config.train_samples < len(train):
            train, rest = train.split(config.train_samples, seed.child("train samples"))
            if config.spare_samples and len(rest):
                self.spare = rest.subset(min(config.spare_samples, len(rest)), seed.child("spare samples"))
        if 0 < config.eval_samples < len(dev):
            dev = dev.subset(config.eval_samples, seed.child("eval samples"))
        self.train, self.dev = train, dev

    def score(self, truth: Array, guess: Array) -> float:
        """The task's metric."""
        return score(self.metric, truth, guess)

    def shard(self, place: int, count: int) -> Shard:
        """Part ``place`` of ``count``: disjoint from the others."""
        spare = None if self.spare is None else self.spare.shard(place, count)
        seed = self._seed.child("shard", place)
        return Shard(self.train.shard(place, count), self.dev.shard(place, count), seed, spare)


@dataclass(frozen=True)
class Shard:
    """One edge's examples; ``spare`` are those that nobody trains on, if they are to be scored."""

    train: EncodedSet
    dev: EncodedSet
    seed: Seed
    spare: EncodedSet | None = None

    def plan(self, batch_size: int, steps: int) -> BatchPlan:
        """The batches of each step, when all edges take ``steps`` per epoch."""
        return BatchPlan(self.train.lengths, batch_size, self.seed, steps=steps)

    def natural_steps(self, batch_size: int) -> int:
        """Steps that one epoch over this shard takes by itself."""
        return natural_steps(len(self.train), batch_size)

    def batch(self, plan: BatchPlan, step: int) -> Batch:
        """The batch of a step, counted from 0 through all epochs."""
        return make_batch(self.train, plan.at(step))

    def held_out(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Batch]:
        """All held-out examples of this shard."""
        return evaluation_batches(self.dev, batch_size)

    def spare_batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Batch]:
        """All spare examples of this shard."""
        return iter(()) if self.spare is None else evaluation_batches(self.spare, batch_size)

    def samples(self, count: int, batch_size: int = EVALUATION_BATCH) -> Iterator[Inputs]:
        """Some training examples to calibrate on."""
        some = self.train.subset(min(count, len(self.train)), self.seed.child("calibration"))
        return map(inputs_of, evaluation_batches(some, batch_size))


def model_source(config: SplitFineTuning, lookup: DataLookup) -> str | Path:
    """Name or folder of the pre-trained model: a packaged one, or a data set of that name."""
    return config.model if config.model == "minilm" else lookup(config.model)


@dataclass
class Builder:
    """Builds halves (or the whole) of one run's model, the same on every machine."""

    config: SplitFineTuning
    seed: Seed
    lookup: DataLookup

    @cached_property
    def source(self) -> str | Path:
        """Where the pre-trained model is."""
        return model_source(self.config, self.lookup)

    @cached_property
    def classes(self) -> int:
        """Classes of the task; needs no data."""
        return task_entry(self.config.task).classes

    def options(self, layers: int) -> CutOptions:
        """The cut of a model with ``layers`` blocks."""
        c = self.config
        return CutOptions(
            block=c.block_of(layers),
            how=c.cut,
            rank=c.rank if c.cut in ("ffn_svd", "codec") else None,
            residual=c.residual,
            init=c.init,
            seed=self.seed.child("codec").value & 0x7FFFFFFF,
            decoder=c.decoder,
            sentence_vector=c.sentence_vector,
        )

    @cached_property
    def layers(self) -> int:
        """Blocks of the whole model, from its config alone."""
        folder = model_folder(self.source)
        return int(AutoConfig.from_pretrained(folder, local_files_only=True).num_hidden_layers)

    def front(self) -> tuple[Front, Tokenizer]:
        """The edge's half and its tokenizer."""
        return build_front(
            self.source,
            self.options(self.layers),
            classes=self.classes,
            head=self.config.head,
            hidden_dropout=self.config.dropout,
        )

    def task(self, tokenizer: Tokenizer) -> TaskData:
        """The run's examples in a model's tokens."""
        return TaskData(self.config, self.seed, self.lookup, tokenizer)

    def trunk(self) -> Trunk:
        """The cloud's half."""
        trunk = build_trunk(
            self.source,
            self.options(self.layers),
            classes=self.classes,
            head=self.config.head,
            dropout=self.config.dropout,
            seed=self.head_seed,
            hidden_dropout=self.config.dropout,
        )
        gc.collect()
        return trunk

    def whole(self) -> tuple[Classifier, Tokenizer]:
        """The unsplit model, with the same first values."""
        with LOADING:
            backbone, tokenizer = load_backbone(self.source, hidden_dropout=self.config.dropout)
            model = Classifier(
                backbone, self.classes, head=self.config.head, dropout=self.config.dropout, seed=self.head_seed
            )
        return model, tokenizer

    @property
    def head_seed(self) -> int:
        """Seed of the head's first values."""
        return self.seed.child("head").value & 0x7FFFFFFF
