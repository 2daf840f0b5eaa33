"""Gradient compression by torch's communication hooks of DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from .config import TrainingConfig


def compress(ddp: DistributedDataParallel, config: TrainingConfig) -> None:
    """Register the configured hook, if any."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if config.compression == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif config.compression == "powersgd":
        state: Any = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=config.powersgd_rank, start_powerSGD_iter=config.powersgd_start
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
