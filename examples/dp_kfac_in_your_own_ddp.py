"""Add DP-KFAC to an existing DistributedDataParallel script: three more lines.

torchrun --nproc-per-node 2 examples/dp_kfac_in_your_own_ddp.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from farshore.algorithms.dp_kfac import DPKFAC

STEPS, BATCH = 60, 32


def main() -> None:
    """Train a small network on scikit-learn's digits."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    # 1. Each layer has one owner rank; with grad_exchange="owner" a step sends as many bytes as plain SGD.
    kfac = DPKFAC(model, lr=optimizer, grad_exchange="owner", factor_steps=1, inv_steps=5, kl_clip=1e-2)
    ddp = DistributedDataParallel(model)
    # 2. DDP sends each gradient to its owner instead of all-reducing it.
    kfac.attach_ddp(ddp)

    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        rows = torch.randint(len(y), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(ddp(x[rows]), y[rows]).backward()
        kfac.step()  # 3. Replaces the gradients by preconditioned ones, on every rank.
        optimizer.step()

    if dist.get_rank() == 0:
        with torch.no_grad():
            print(f"training loss {float(cross_entropy(model(x), y)):.4f} after {STEPS} steps")
        for phase, traffic in kfac.comm_bytes().items():
            print(f"{phase}: {traffic['sent'] / STEPS / 1e3:.1f} kB per step sent by rank 0")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
