"""The learning problem of a federated run: images divided among clients, with the virtual data between them or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, autocast

from ...core.seeds import Seed
from ...data.image_transforms import Recipe, recipes, resized
from ...data.images import ImageTask
from ...engines.federated.client_pool import cohort
from ...engines.federated.local import Objective, Sgd, train
from ...engines.federated.means import Means
from ...engines.federated.methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, FedNova, Scaffold, Work
from ...engines.federated.tree import Part
from ...models.flat_params import FlatModel
from ...models.image_classifiers import build
from ...models.staged import StagedNet
from .batch_norm import forward_both, untracked
from .config import VHL
from .describe import describe_partition, describe_virtual
from .heads import show_features, widen_head
from .losses import LossParts, VHLLoss
from .virtual import VirtualData, VirtualRecipe

_TEST_BATCH = 512

#: What clients tell of their steps, and the loss's names of it.
_TERMS = {"train_ce": "natural", "virtual_ce": "virtual", "align_loss": "align", "noise_loss": "noise"}
_DOMAIN = {"domain_loss": "domain"}


class VHLTask:
    """See :class:`~farshore.engines.federated.task.Task`.

    Parameters
    ----------
    config : VHL
    seed : Seed
        The run's; sets first weights, virtual data and every client's batches.
    images : ImageTask
    population : int
        Clients that the training images are divided among.
    """

    def __init__(self, config: VHL, seed: Seed, images: ImageTask, population: int) -> None:
        self._config, self._seed, self.images = config, seed, images
        self._prepare, self._prepare_virtual = recipes(config.dataset, config.normalize, config.augment)
        self._x, self._y = self._pixels(images.train.images), torch.from_numpy(images.train.labels)
        self._test_x, self._test_y = self._pixels(images.test.images), torch.from_numpy(images.test.labels)
        self._population = population
        self.classes = len(images.train.classes)
        self.partition = config.partition.seeded(seed.child("partition").value % (1 << 32))
        self.parts = [torch.from_numpy(p) for p in self.partition.split(images.train.labels, population)]
        self.recipe = self._recipe() if config.virtual.has_images else None
        self._virtual: VirtualData | None = None
        self.loss = VHLLoss(self.classes, self._virtual_classes, config.virtual, seed=seed.child("loss").value)

    @property
    def notes(self) -> list[str]:
        """Where the images come from, and whether they are what others report on; which virtual data there are."""
        notes = [f"{self.images.name}: {self.images.train.note}"]
        if self.recipe is not None:
            how = "sent to each client" if self.ships else "made by each client"
            made = f"{self.recipe.count} images of {self.recipe.generator}, SHA-256 {self.virtual_data.digest}"
            notes.append(f"virtual data: {made}, {how}")
        return notes

    @property
    def ships(self) -> bool:
        """Whether clients are sent the virtual data, rather than to make them."""
        return self._config.virtual.ships

    @property
    def virtual_data(self) -> VirtualData:
        """The virtual data; made here unless they were given before."""
        if self._virtual is None:
            assert self.recipe is not None
            self._virtual = VirtualData.from_recipe(self.recipe)
        return self._virtual

    def hold(self, data: VirtualData) -> None:
        """Train on these virtual data."""
        self._virtual = data

    @property
    def _virtual_classes(self) -> int:
        return self._config.virtual.classes or self.classes

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(images)
        if self._config.augment == "official":
            x = resized(x, 32)
        if self._config.channels == "three" and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return x

    def _recipe(self) -> VirtualRecipe:
        settings, (_, channels, size, _) = self._config.virtual, self._x.shape
        return VirtualRecipe(
            generator=settings.generator,
            classes=self._virtual_classes,
            per_class=settings.per_class,
            channels=channels,
            size=size,
            seed=self._seed.child("virtual").value,
        )

    def _virtual_labels(self) -> Tensor:
        labels = self.virtual_data.labels
        if self._config.virtual.shuffle_labels:
            generator = torch.Generator().manual_seed(self._seed.child("shuffled labels").value)
            labels = labels[torch.randperm(len(labels), generator=generator)]
        return labels

    def model(self) -> FlatModel:
        """The network with the run's first weights; with virtual data, a head that has room for them."""
        module, weights = self._module(), self._seed.child("weights").value
        if self.recipe is not None and (extra := self.loss.outputs - self.classes):
            widen_head(module, extra, seed=weights)
        show_features(module, self._config.virtual.feature_layer)
        return FlatModel(module.train())

    def plain(self) -> FlatModel:
        """The network as it is trained without virtual data."""
        return FlatModel(self._module().train())

    def _module(self) -> StagedNet:
        _, channels, size, _ = self._x.shape
        weights = self._seed.child("weights").value
        return build(self._config.model, self.classes, channels, norm=self._config.norm, seed=weights, size=size)

    def method(self, flat: FlatModel) -> FederatedMethod:
        """The base method."""
        method = self._method(flat)
        method.divergence_size = flat.layout.trainable if self._config.divergence else 0
        return method

    def _method(self, flat: FlatModel) -> FedAvg:
        keep = self._config.client_momentum == "keep"
        match self._config.method:
            case "scaffold":
                option = self._config.scaffold_option
                return Scaffold(self._config.server_lr, option=option, keeps_momentum=keep)
            case "fednova":
                return FedNova(flat.layout.trainable, keeps_momentum=keep)
            case _:
                return FedAvg(keeps_momentum=keep)

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        """All batches of a client's local epochs in a round."""
        batches = list(self._batches(client, self._seed.child("round", round_index, "client", client)))
        # Contrasts mix the samples of a batch, and the losses of each are taken in float32.
        each = _each if not self._config.virtual.enabled and self._config.precision != "bf16" else None
        sgd = self.sgd_of(client, round_index)
        means = Means(self.reports) if self.reports else None
        objective = self._objective(flat, means)
        whole = self._whole(batches) if self._config.method == "scaffold" and self._config.scaffold_option == 1 else ()
        return Work(
            objective, batches, len(self.parts[client]), sgd, sample_losses=each, means=means, full_batches=whole
        )

    def work_size(self, client: int) -> tuple[int, int]:
        """See :class:`~farshore.engines.federated.task_hooks.SizedTask`."""
        part = self.parts[client]
        epoch = _cut(part, self._config.batch, alone=self.recipe is not None)
        return len(part), self._config.local_epochs * len(epoch)

    def _whole(self, batches: Sequence[tuple[Any, ...]]) -> Sequence[tuple[float, Any]]:
        """The batches of the first epoch, which hold each image once, by their shares of the images."""
        epoch = batches[: len(batches) // self._config.local_epochs]
        sizes = [len(batch[1]) for batch in epoch]
        return [(size / sum(sizes), batch) for size, batch in zip(sizes, epoch, strict=True)]

    def sgd_of(self, client: int, round_index: int) -> Sgd:
        """A client's optimizer in round ``round_index`` by the configured clock."""
        return self.sgd(self._ticks(client, round_index) + 1)

    def sgd(self, round_index: int) -> Sgd:
        """A client's optimizer in round ``round_index``; by participation, in the client's own ``round_index``-th."""
        config = self._config
        mu = config.mu if config.method == "fedprox" else 0.0
        momentum = config.scaffold_momentum if config.method == "scaffold" else config.momentum
        return Sgd(config.lr * config.lr_decay ** (round_index - 1), momentum, config.weight_decay, mu)

    def _ticks(self, client: int, round_index: int) -> int:
        """By how many factors the learning rate has fallen before round ``round_index``.

        Cohorts follow from the seed, so that a client need not remember in which it was.
        """
        if self._config.lr_clock == "rounds":
            return round_index - 1
        size = self._config.per_round
        return sum(client in cohort(self._seed, r, self._population, size) for r in range(1, round_index))

    def _objective(self, flat: FlatModel, means: Means | None) -> Objective:
        model, settings = flat.module, self._config.virtual
        half = self._config.precision == "bf16"

        def plain(batch: Any) -> Tensor:
            x, y = batch
            with autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(x)[0]
            return F.cross_entropy(logits.float(), y)

        def with_images(batch: Any) -> Tensor:
            epoch, x, y, x_v, y_v = batch
            with autocast("cpu", torch.bfloat16, enabled=half):
                logits, features = forward_both(model, x, x_v, settings.bn)
            return told(self.loss(logits, features, y, y_v, epoch=epoch))

        def with_anchors(batch: Any) -> Tensor:
            epoch, x, y, y_v, seed = batch
            with autocast("cpu", torch.bfloat16, enabled=half):
                logits, features = model(x)
            draw = torch.Generator().manual_seed(seed)
            return told(self.loss(logits, features, y, y_v, epoch=epoch, generator=draw))

        def told(parts: LossParts) -> Tensor:
            if means is not None:
                means.add(*(getattr(parts, name) for name in self._terms.values()))
            return parts.total

        if not settings.enabled:
            return plain
        return with_images if settings.has_images else with_anchors

    def _batches(self, client: int, seed: Seed) -> Iterator[tuple[Any, ...]]:
        part = self.parts[client]
        generator = torch.Generator().manual_seed(seed.value)
        varied = torch.Generator().manual_seed(seed.child("augment").value)
        endless = self._virtual_batches(seed)
        for epoch in range(self._config.local_epochs):
            order = part[torch.randperm(len(part), generator=generator)]
            for rows in _cut(order, self._config.batch, alone=self.recipe is not None):
                natural = self._prepare(self._x[rows], varied), self._y[rows]
                yield (epoch, *natural, *next(endless)) if self._config.virtual.enabled else natural

    def _virtual_batches(self, seed: Seed) -> Iterator[tuple[Any, Any]]:
        """Virtual images and their labels, or labels of Gaussian anchors and the seed that these are drawn with."""
        generator = torch.Generator().manual_seed(seed.child("virtual").value)
        if self.recipe is None:
            return self._anchor_labels(generator)
        return self._image_batches(generator, torch.Generator().manual_seed(seed.child("augment virtual").value))

    def _anchor_labels(self, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        size = (self._config.virtual.batch,)
        while True:
            labels = torch.randint(self._virtual_classes, size, generator=generator)
            yield labels, int(torch.randint(1 << 62, (), generator=generator))

    def _image_batches(self, generator: torch.Generator, varied: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled for ever; a short last batch is left out."""
        labels = self._virtual_labels()
        size = min(self._config.virtual.batch, len(labels))
        while True:
            order = torch.randperm(len(labels), generator=generator)
            for rows in torch.split(order[: len(order) // size * size], size):
                yield self._prepare_virtual(self.virtual_data.images[rows], varied), labels[rows]

    @property
    def reports(self) -> Sequence[str]:
        """The terms of the loss, where it has more than one."""
        return tuple(self._terms)

    @property
    def _terms(self) -> Mapping[str, str]:
        settings = self._config.virtual
        if not settings.enabled:
            return {}
        return _TERMS | _DOMAIN if settings.domain_weight else _TERMS

    def refine(self, flat: FlatModel, state: Part, round_index: int) -> Part:
        """See :class:`~farshore.engines.federated.task_hooks.RefiningTask`: some steps on virtual images alone.

        Cross-entropy, with the clients' rate by rounds, momentum from rest and weight decay. Batch norms normalize by
        the virtual batch, but their running statistics stay those of the clients: natural images are tested with them.
        """
        if not (steps := self._config.virtual.server_retrain):
            return state
        half = self._config.precision == "bf16"

        def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
            with autocast("cpu", torch.bfloat16, enabled=half):
                logits = flat.module(batch[0])[0]
            return F.cross_entropy(logits.float(), self.loss.virtual_targets(batch[1]))

        flat.load(state[FLOATS], state[INTEGERS])
        batches = islice(self._virtual_batches(self._seed.child("round", round_index, "server")), steps)
        with untracked(flat.module):
            train(flat, objective, batches, replace(self.sgd(round_index), mu=0.0))
        return {**state, FLOATS: flat.floats.numpy().copy()}

    def figures(self, entry: Mapping[str, Any]) -> dict[str, float]:
        """The learning rate, a mean over the cohort; without virtual data the loss is the cross-entropy."""
        round_index = entry["round"]
        ticks = [self._ticks(client, round_index) for client in entry["cohort"]]
        lr = sum(self.sgd(tick + 1).lr for tick in ticks) / max(1, len(ticks))
        return {"lr": lr, **({} if self._config.virtual.enabled else {"train_ce": entry["train_loss"]})}

    def describe(self, folder: Path) -> None:
        """The partition, a report of it, and the virtual data's recipe and digest."""
        parts = [part.numpy() for part in self.parts]
        describe_partition(folder, self.partition, self.images.train.labels, parts, self.classes)
        if self.recipe is not None:
            describe_virtual(folder, self.recipe, self.virtual_data.digest, shipped=self.ships)

    def test_images(self, count: int) -> Tensor:
        """The first test images as the network takes them, [count, channels, H, W] fp32."""
        return self._prepare(self._test_x[:count])

    @property
    def scaling(self) -> dict[str, str]:
        """``mean`` and ``deviation`` of natural images, JSON lists: a number per channel, or one for all."""
        return {"mean": json.dumps(self._prepare.mean), "deviation": json.dumps(self._prepare.deviation)}

    @cached_property
    def test_parts(self) -> list[NDArray[np.int64]]:
        """Each client's own test images: of every class the share that it has of the class's training images."""
        parts = [part.numpy() for part in self.parts]
        return self.partition.split_test(self.images.train.labels, parts, self.images.test.labels)

    def client_accuracy(self, flat: FlatModel, state: Part) -> NDArray[np.float64]:
        """See :class:`~farshore.engines.federated.task_hooks.ReportingTask`; a virtual winner is an error."""
        flat.load(state[FLOATS], state[INTEGERS])
        decided = self._decided(flat, self._test_x, self._prepare)
        right = (decided == self._test_y).numpy()
        return np.array([right[part].mean() if len(part) else np.nan for part in self.test_parts])

    @torch.no_grad()
    def _decided(self, flat: FlatModel, images: Tensor, prepare: Recipe) -> Tensor:
        """The largest output of each image, [N]."""
        flat.module.eval()
        found = [flat.module(prepare(x))[0].argmax(1) for x in torch.split(images, _TEST_BATCH)]
        flat.module.train()
        return torch.cat(found)

    def _virtual_accuracy(self, flat: FlatModel) -> float:
        """Share of virtual images that the model takes for what they are trained as."""
        decided = self._decided(flat, self.virtual_data.images, self._prepare_virtual)
        return float((decided == self.loss.virtual_targets(self._virtual_labels())).float().mean())

    @torch.no_grad()
    def evaluate(self, flat: FlatModel, state: Part) -> dict[str, float]:
        """``acc`` over all outputs, ``acc_nat`` over the natural ones, and the test loss over the latter; with virtual
        images ``virtual_acc``, over all outputs.
        """
        flat.load(state[FLOATS], state[INTEGERS])
        flat.module.eval()
        right = natural = 0
        loss = 0.0
        for x, y in zip(*(torch.split(t, _TEST_BATCH) for t in (self._test_x, self._test_y)), strict=True):
            logits = flat.module(self._prepare(x))[0]
            own = logits[:, : self.classes]
            right += int((logits.argmax(1) == y).sum())
            natural += int((own.argmax(1) == y).sum())
            loss += float(F.cross_entropy(own, y, reduction="sum"))
        flat.module.train()
        count = len(self._test_y)
        scores = {"acc": right / count, "acc_nat": natural / count, "test_loss": loss / count}
        return scores | ({} if self.recipe is None else {"virtual_acc": self._virtual_accuracy(flat)})


def _each(model: Callable[..., tuple[Tensor, Tensor]], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0])[0], batch[1], reduction="none")


def _cut(order: Tensor, size: int, *, alone: bool) -> list[Tensor]:
    """Batches of ``size``; a last one of a single image joins the one before unless it may stand ``alone``.

    Batch norm cannot normalize a single image.
    """
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1 and not alone:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
