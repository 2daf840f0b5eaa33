"""Gradient compression by torch's communication hooks of DistributedDataParallel."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ...models.devices import forked_generators
from .config import TrainingConfig


def compress(ddp: DistributedDataParallel, config: TrainingConfig) -> None:
    """Register the configured hook, if any."""
    if config.compression == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif config.compression == "powersgd":
        state: Any = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=config.powersgd_rank, start_powerSGD_iter=config.powersgd_start
        )
        ddp.register_comm_hook(state, _power_sgd)


@wraps(powerSGD_hook.powerSGD_hook)  # DDP checks the signature
def _power_sgd(state: Any, bucket: Any) -> Any:
    with forked_generators(torch.device("cpu")):  # the hook seeds the global generator
        return powerSGD_hook.powerSGD_hook(state, bucket)
