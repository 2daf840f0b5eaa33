"""A classification task over rows of tensors that are divided among clients, for custom methods and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core.seeds import Seed
from ...models.devices import forked_generators
from ...models.flat_params import FlatModel
from ...models.wrappers import first_tensor
from .batches import split_batches
from .compute import to_device
from .local import Sgd
from .methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, Work
from .tree import NamedArrays

_TEST_BATCH = 1024


def _sample_losses(model: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(first_tensor(model(batch[0])), batch[1], reduction="none")


def _fedavg(_: FlatModel) -> FederatedMethod:
    return FedAvg()


@dataclass
class Supervised:
    """See :class:`~farshore.engines.federated.task.Task`; clients minimize the cross-entropy on their rows.

    Parameters
    ----------
    x, y : torch.Tensor
        Training inputs (N, …) float32 and classes (N,) int64.
    test_x, test_y : torch.Tensor
        Test inputs and classes.
    parts : sequence of int array
        The rows of each client.
    seed : Seed
        The run's seed, for initial weights and the order of each client's batches.
    build : callable
        Creates the module: inputs → logits (B, C), or a mapping with them, or a tuple that begins with them. Initial
        weights may use the global generator, which is seeded here.
    sgd : callable
        ``sgd(round_index)`` returns the optimizer of a round.
    method : callable
        Creates the federated method; by default FedAvg.
    batch, epochs : int
        Batch size and epochs of a client's round.
    notes : list of str
        Remarks about the data for the run's log.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    parts: Sequence[NDArray[np.int64]]
    seed: Seed
    build: Callable[[], nn.Module]
    sgd: Callable[[int], Sgd]
    method: Callable[[FlatModel], FederatedMethod] = _fedavg
    batch: int = 32
    epochs: int = 1
    notes: Sequence[str] = ()

    def model(self) -> FlatModel:
        """Create a model with the initial weights; the state of the global generator is preserved."""
        with forked_generators(torch.device("cpu")):
            torch.manual_seed(self.seed.child("weights").value)
            return FlatModel(self.build().train())

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        """Prepare the client's rows, in a new random order in each epoch."""
        rows = torch.from_numpy(self.parts[client])
        generator = torch.Generator().manual_seed(self.seed.child("round", round_index, "client", client).value)
        orders = (rows[torch.randperm(len(rows), generator=generator)] for _ in range(self.epochs))
        single = not flat.has_batch_norm
        parts = [part for order in orders for part in split_batches(order, self.batch, allow_single=single)]
        batches = [(self.x[part], self.y[part]) for part in parts]
        sgd = self.sgd(round_index)
        return Work(
            lambda b: F.cross_entropy(first_tensor(flat.module(b[0])).float(), b[1]),
            batches,
            len(rows),
            sgd,
            sample_losses=_sample_losses,
        )

    @torch.no_grad()
    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        """Return ``acc`` and ``test_loss`` on the test rows, nothing if there are none; ``flat`` is overwritten."""
        if not len(self.test_y):
            return {}
        flat.load(state[FLOATS], state[INTEGERS])
        flat.module.eval()
        correct, loss = 0, 0.0
        for batch in zip(*(torch.split(t, _TEST_BATCH) for t in (self.test_x, self.test_y)), strict=True):
            x, y = to_device(batch, flat.device)
            logits = first_tensor(flat.module(x))
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
        flat.module.train()
        return {"acc": correct / len(self.test_y), "test_loss": loss / len(self.test_y)}
