"""Construct what a program needs: the examples of its shard, and its half of the model."""

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
from .backbone import LOADING, load_backbone
from .config import SplitFineTuning
from .cut import build_front, build_trunk
from .front import Front
from .heads import Classifier
from .model_folder import model_folder
from .plan import CutOptions
from .trunk import Trunk

DataLookup = Callable[[str], Path]
ModelInputs = Mapping[str, torch.Tensor]
#: Sentences per evaluation message.
EVALUATION_BATCH_SIZE = 64


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a model's arguments: ``input_ids``, ``attention_mask`` and, for pairs, ``token_type_ids``; each [B, T]."""
    inputs = {
        "input_ids": torch.from_numpy(batch.input_ids),
        "attention_mask": torch.from_numpy(batch.attention_mask),
    }
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = torch.from_numpy(batch.token_type_ids)
    return inputs


class TaskData:
    """The tokenized examples of a task.

    Parameters
    ----------
    config : SplitFineTuning
    seed : Seed
        Seed of the run; draws the examples if not all are used.
    lookup : callable
        Maps the name of a data set to its path.
    tokenizer : transformers fast tokenizer
    """

    def __init__(self, config: SplitFineTuning, seed: Seed, lookup: DataLookup, tokenizer: Tokenizer) -> None:
        entry = task_entry(config.task)
        task = entry.load(lookup, seed.child("task"))
        self.metric = task.metric
        self.labels, self.notes = task.labels, task.notes
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
        """Compute the task's metric."""
        return score(self.metric, truth, guess)

    def shard(self, index: int, count: int) -> Shard:
        """Return shard ``index`` of ``count`` disjoint shards."""
        spare = None if self.spare is None else self.spare.shard(index, count)
        seed = self._seed.child("shard", index)
        return Shard(self.train.shard(index, count), self.dev.shard(index, count), seed, spare)


@dataclass(frozen=True)
class Shard:
    """The examples of one edge; ``spare`` are training examples left out of training, to be scored at the end."""

    train: EncodedSet
    dev: EncodedSet
    seed: Seed
    spare: EncodedSet | None = None

    def plan(self, batch_size: int, steps: int) -> BatchPlan:
        """Plan the batches of all steps, with ``steps`` per epoch on every edge."""
        return BatchPlan(self.train.lengths, batch_size, self.seed, steps=steps)

    def natural_steps(self, batch_size: int) -> int:
        """Return the number of steps of one epoch over this shard alone."""
        return natural_steps(len(self.train), batch_size)

    def batch(self, plan: BatchPlan, step: int) -> Batch:
        """Return the batch of a step; steps count from 0 through all epochs."""
        return make_batch(self.train, plan.at(step))

    def held_out(self, batch_size: int = EVALUATION_BATCH_SIZE) -> Iterator[Batch]:
        """Iterate over the held-out examples of this shard."""
        return evaluation_batches(self.dev, batch_size)

    def spare_batches(self, batch_size: int = EVALUATION_BATCH_SIZE) -> Iterator[Batch]:
        """Iterate over the spare examples of this shard."""
        return iter(()) if self.spare is None else evaluation_batches(self.spare, batch_size)

    def samples(self, count: int, batch_size: int = EVALUATION_BATCH_SIZE) -> Iterator[ModelInputs]:
        """Draw ``count`` training examples for calibration."""
        drawn = self.train.subset(min(count, len(self.train)), self.seed.child("calibration"))
        return map(inputs_of, evaluation_batches(drawn, batch_size))


def model_source(config: SplitFineTuning, lookup: DataLookup) -> str | Path:
    """Return the name of a packaged model, or the folder of the data set ``config.model``."""
    return config.model if config.model == "minilm" else lookup(config.model)


@dataclass
class Builder:
    """Builds the halves, or the whole, of a run's model; deterministic across machines."""

    config: SplitFineTuning
    seed: Seed
    lookup: DataLookup

    @cached_property
    def source(self) -> str | Path:
        """Name or folder of the pre-trained model."""
        return model_source(self.config, self.lookup)

    @cached_property
    def classes(self) -> int:
        """Number of classes of the task; needs no data."""
        return task_entry(self.config.task).classes

    def options(self, layers: int) -> CutOptions:
        """Return the cut options for a model of ``layers`` blocks."""
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
        """Number of blocks of the whole model, read from its config."""
        folder = model_folder(self.source)
        return int(AutoConfig.from_pretrained(folder, local_files_only=True).num_hidden_layers)

    def front(self) -> tuple[Front, Tokenizer]:
        """Build the edge's half and its tokenizer."""
        return build_front(
            self.source,
            self.options(self.layers),
            classes=self.classes,
            head=self.config.head,
            hidden_dropout=self.config.dropout,
        )

    def task(self, tokenizer: Tokenizer) -> TaskData:
        """Load and tokenize the run's examples."""
        return TaskData(self.config, self.seed, self.lookup, tokenizer)

    def trunk(self) -> Trunk:
        """Build the cloud's half."""
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

    def unsplit(self) -> tuple[Classifier, Tokenizer]:
        """Build the unsplit model with the same initial values, and its tokenizer."""
        with LOADING:
            backbone, tokenizer = load_backbone(self.source, hidden_dropout=self.config.dropout)
            model = Classifier(
                backbone, self.classes, head=self.config.head, dropout=self.config.dropout, seed=self.head_seed
            )
        return model, tokenizer

    @property
    def head_seed(self) -> int:
        """Seed of the head's initial values."""
        return self.seed.child("head").value & 0x7FFFFFFF
