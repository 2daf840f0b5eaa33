"""Learning rate and momentum as functions of the step alone, so that a resumed run continues where it was."""

from __future__ import annotations

import math

from .config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0, of ``total`` steps."""
    if config.schedule == "one_cycle":
        first, last = config.lr * config.cycle_start, config.lr * config.cycle_end
        return _one_cycle(step, total, config.cycle_peak, first, config.lr, last)
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    progress = min(1.0, step / total)
    if config.schedule == "constant":
        return config.lr * warmup
    if config.schedule == "step":
        return config.lr * warmup * config.lr_gamma ** sum(progress >= drop for drop in config.lr_drops)
    above = (config.lr - config.lr_min) * warmup
    if config.schedule == "polynomial":
        return float(config.lr_min + above * (1 - progress) ** config.lr_power)
    return config.lr_min + above * 0.5 * (1 + math.cos(math.pi * progress))


def momentum(config: TrainingConfig, step: int, total: int) -> float | None:
    """Return the momentum, or Adam's first beta, of a step; None: as configured."""
    if config.schedule != "one_cycle" or config.cycle_momentum is None:
        return None
    usual = config.momentum if config.optimizer == "sgd" else config.betas[0]
    return _one_cycle(step, total, config.cycle_peak, usual, config.cycle_momentum, usual)


def _one_cycle(step: int, total: int, peak: float, first: float, top: float, last: float) -> float:
    """Anneal from ``first`` to ``top`` and on to ``last``, as ``torch.optim.lr_scheduler.OneCycleLR`` does."""
    turn, end = peak * total - 1, total - 1
    if step <= turn:
        return _annealed(first, top, step / turn if turn else 1.0)
    return _annealed(top, last, min(1.0, (step - turn) / (end - turn)))


def _annealed(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
