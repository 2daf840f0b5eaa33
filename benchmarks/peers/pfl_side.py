"""Run the work on pfl, as one of two processes in its own environment: ``pfl_side.py WORK IMAGES``."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from work import IMAGES, Work, build, images, stamp

WORK, FOLDER = Work.loads(sys.argv[1]), sys.argv[2]


class Model(torch.nn.Module):
    """The model with the interface required by pfl."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build(WORK)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.train()
        return F.cross_entropy(self.inner(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"samples": Weighted(len(x), 1)}


def clients() -> FederatedDataset:
    """Dataset with every client's window of the images."""
    x, y = images(FOLDER, WORK)

    def dataset(client: int) -> PyTorchTensorDataset:
        first, count = WORK.window(client)
        return PyTorchTensorDataset((x[first : first + count], y[first : first + count]), user_id=str(client))

    numbers = list(range(WORK.clients))
    weights = {n: WORK.window(n)[1] for n in numbers} if WORK.spread else None
    return FederatedDataset(dataset, get_user_sampler("random", numbers), weights)


class Stamps(TrainingProcessCallback):
    """Signals the ends of the first and the last round."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        if pytorch_ops.distributed is None or pytorch_ops.distributed.global_rank == 0:
            if central_iteration == 0:
                stamp("begun")
            elif central_iteration == WORK.rounds:
                stamp("ended")
        return False, Metrics()


def main() -> None:
    """Run all rounds."""
    torch.set_num_threads(1)
    np.random.seed(0)
    module = Model()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    rounds = WORK.rounds + 1
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, rounds + 1, WORK.cohort, None),
        SimulatedBackend(clients(), clients()),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=WORK.lr, local_batch_size=WORK.batch),
        callbacks=[Stamps()],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    assert IMAGES
    main()
