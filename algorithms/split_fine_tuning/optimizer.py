"""AdamW and its schedule, the same on both sides: linear warm-up, then linear to zero (transformers' own)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from .config import SplitFineTuning
from .training import parameter_groups


def make_optimizer(
    module: nn.Module, config: SplitFineTuning, total: int, done: int = 0
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Optimizer and schedule of one side.

    Parameters
    ----------
    total : int
        Steps of the whole run.
    done : int
        Steps taken already, when continuing from a checkpoint.
    """
    groups = parameter_groups(
        module, config.learning_rate, decay=config.weight_decay, codec_lr_factor=config.codec_lr_factor
    )
    # Fused: one pass over the memory. Plain AdamW took 18 % of a step of MiniLM, whose embeddings are half of it.
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, eps=1e-8, fused=True)
    return optimizer, make_schedule(optimizer, config, total, done)


def make_schedule(optimizer: torch.optim.Optimizer, config: SplitFineTuning, total: int, done: int = 0) -> LambdaLR:
    """The learning-rate schedule, as it stands after ``done`` steps."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    warmup = round(config.warmup * total)
    make: Callable[..., LambdaLR] = get_linear_schedule_with_warmup  # not annotated
    return make(optimizer, warmup, total, last_epoch=done - 1 if done else -1)
