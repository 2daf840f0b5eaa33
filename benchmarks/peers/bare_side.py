"""A plain training loop in one process, without federation or ledger: the lower bound of the cost."""

from __future__ import annotations

import sys

import numpy as np
import torch
from work import Work, build, images, local_sgd, stamp

WORK, FOLDER = Work.loads(sys.argv[1]), sys.argv[2]


def main() -> None:
    """Run all rounds: load the state, train, average."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    model = build(WORK)
    parameters = list(model.parameters())
    state = [p.detach().clone() for p in parameters]
    x, y = images(FOLDER, WORK)
    for number in range(WORK.rounds + 1):
        if number == 1:
            stamp("begun")
        mean = [torch.zeros_like(s) for s in state]
        for client in rng.choice(WORK.clients, WORK.cohort, replace=False):
            with torch.no_grad():
                for parameter, value in zip(parameters, state, strict=True):
                    parameter.copy_(value)
            first, count = WORK.window(int(client))
            local_sgd(model, x[first : first + count], y[first : first + count], WORK.batch, WORK.lr)
            with torch.no_grad():
                for summed, parameter in zip(mean, parameters, strict=True):
                    summed.add_(parameter, alpha=1 / WORK.cohort)
        state = mean
    stamp("ended")


if __name__ == "__main__":
    main()
