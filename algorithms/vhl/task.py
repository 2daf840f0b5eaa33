"""The learning problem of a federated run: images divided among clients, with the virtual data between them or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...core.seeds import Seed
from ...data.images import ImageTask
from ..federated.flat import FlatModel
from ..federated.local import Objective, Sgd
from ..federated.methods import FLOATS, INTEGERS, FedAvg, FedNova, Method, Scaffold, Work
from ..federated.tree import Part
from .batch_norm import forward_both
from .config import VHL
from .losses import LossOptions, VHLLoss
from .models import build, widen_head
from .virtual import VirtualData, VirtualRecipe

_TEST_BATCH = 512


def normalised(images: Tensor) -> Tensor:
    """uint8 → float32 in [-2, 2], as virtual images are."""
    return (images.float() / 255 - 0.5) / 0.25


class VHLTask:
    """See :class:`~farshore.algorithms.federated.task.Task`.

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
        self._x, self._y = torch.from_numpy(images.train.images), torch.from_numpy(images.train.labels)
        self._test_x, self._test_y = torch.from_numpy(images.test.images), torch.from_numpy(images.test.labels)
        self.classes = len(images.train.classes)
        partition = config.partition.seeded(seed.child("partition").value % (1 << 32))
        self.parts = [torch.from_numpy(p) for p in partition.split(images.train.labels, population)]
        self.recipe = self._recipe() if config.virtual.enabled else None
        self._virtual: VirtualData | None = None
        self.loss = VHLLoss(self.classes, self._virtual_classes, self._options(), seed=seed.child("loss").value)

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

    def _options(self) -> LossOptions:
        known = LossOptions.model_fields.keys() & type(self._config.virtual).model_fields.keys()
        return LossOptions(**{name: getattr(self._config.virtual, name) for name in known})

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
        _, channels, size, _ = self._x.shape
        weights = self._seed.child("weights").value
        module = build(self._config.model, self.classes, channels, norm=self._config.norm, seed=weights, size=size)
        if self.recipe is not None and (extra := self.loss.outputs - self.classes):
            widen_head(module, extra, seed=weights)
        return FlatModel(module.train())

    def method(self, flat: FlatModel) -> Method:
        """The base method."""
        match self._config.method:
            case "scaffold":
                return Scaffold(self._config.server_lr)
            case "fednova":
                return FedNova(flat.layout.trainable)
            case _:
                return FedAvg()

    def work(self, flat: FlatModel, client: int, number: int) -> Work:
        """All batches of a client's local epochs in a round."""
        batches = list(self._batches(client, self._seed.child("round", number, "client", client)))
        each = _each if self.recipe is None else None  # contrasts mix the samples of a batch
        return Work(self._objective(flat), batches, len(self.parts[client]), self.sgd(number), each=each)

    def sgd(self, number: int) -> Sgd:
        """Every client's optimiser in round ``number``."""
        config = self._config
        mu = config.mu if config.method == "fedprox" else 0.0
        return Sgd(config.lr * config.lr_decay ** (number - 1), config.momentum, config.weight_decay, mu)

    def _objective(self, flat: FlatModel) -> Objective:
        model, mode = flat.module, self._config.virtual.bn

        def plain(batch: Any) -> Tensor:
            x, y = batch
            return F.cross_entropy(model(x)[0], y)

        def with_virtual(batch: Any) -> Tensor:
            epoch, x, y, x_v, y_v = batch
            logits, features = forward_both(model, x, x_v, mode)
            return self.loss(logits, features, y, y_v, epoch=epoch).total

        return plain if self.recipe is None else with_virtual

    def _batches(self, client: int, seed: Seed) -> Iterator[tuple[Any, ...]]:
        part = self.parts[client]
        generator = torch.Generator().manual_seed(seed.value)
        endless = self._virtual_batches(torch.Generator().manual_seed(seed.child("virtual").value))
        for epoch in range(self._config.local_epochs):
            order = part[torch.randperm(len(part), generator=generator)]
            for rows in _cut(order, self._config.batch, alone=self.recipe is not None):
                natural = normalised(self._x[rows]), self._y[rows]
                yield natural if self.recipe is None else (epoch, *natural, *next(endless))

    def _virtual_batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled for ever; a short last batch is left out."""
        if self.recipe is None:
            return
        labels = self._virtual_labels()
        size = min(self._config.virtual.batch, len(labels))
        while True:
            order = torch.randperm(len(labels), generator=generator)
            for rows in torch.split(order[: len(order) // size * size], size):
                yield self.virtual_data.floats(rows), labels[rows]

    @torch.no_grad()
    def evaluate(self, flat: FlatModel, state: Part) -> dict[str, float]:
        """``acc`` over all outputs, ``acc_nat`` over the natural ones, and the test loss over the latter."""
        flat.load(state[FLOATS], state[INTEGERS])
        flat.module.eval()
        right = natural = 0
        loss = 0.0
        for x, y in zip(*(torch.split(t, _TEST_BATCH) for t in (self._test_x, self._test_y)), strict=True):
            logits = flat.module(normalised(x))[0]
            own = logits[:, : self.classes]
            right += int((logits.argmax(1) == y).sum())
            natural += int((own.argmax(1) == y).sum())
            loss += float(F.cross_entropy(own, y, reduction="sum"))
        flat.module.train()
        count = len(self._test_y)
        return {"acc": right / count, "acc_nat": natural / count, "test_loss": loss / count}


def _each(model: Callable[..., tuple[Tensor, Tensor]], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0])[0], batch[1], reduction="none")


def _cut(order: Tensor, size: int, *, alone: bool) -> list[Tensor]:
    """Batches of ``size``; a last one of a single image joins the one before unless it may stand ``alone``.

    Batch norm cannot normalise a single image.
    """
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1 and not alone:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
