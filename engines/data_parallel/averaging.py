"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...core.errors import StorageError
from ...core.message import Array

_PREFIX = "average."
_COUNT = "average_count"


class WeightAverage:
    """The average w ← d w + (1 - d) w_new of all parameters and floating-point buffers, from the initial ones on.

    Integer buffers are copied.

    Parameters
    ----------
    model : Module
        On its device, without hooks.
    decay : float
        d.
    warmup : bool
        Use min(d, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self._decay, self._warmup = decay, warmup
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self._averaged.requires_grad_(False)
        # AveragedModel copies the model at its first update unless it has seen one: here the initial weights count.
        self._averaged.n_averaged.fill_(1)

    @property
    def model(self) -> nn.Module:
        """A copy of the model with the averaged weights."""
        return self._averaged.module

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's current weights."""
        self._averaged.update_parameters(model)

    def arrays(self) -> dict[str, Array]:
        """Return the state for a checkpoint."""
        found: dict[str, Array] = {
            _PREFIX + name: tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()
        }
        found[_COUNT] = np.array(int(self._averaged.n_averaged), np.int64)
        return found

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Restore what :meth:`arrays` returned; other keys are ignored.

        Raises
        ------
        StorageError
            The average of a tensor is missing, or has another shape.
        """
        own = {
            n.removeprefix(_PREFIX): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith(_PREFIX)
        }
        try:
            self.model.load_state_dict(own)
            self._averaged.n_averaged.fill_(int(arrays[_COUNT]))
        except (KeyError, RuntimeError) as error:
            raise StorageError(
                "the checkpoint has no average of this model's weights",
                hint="resume the run with its original configuration",
            ) from error

    def _blend(self, averages: Any, current: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)
            return
        n = int(count) if self._warmup else 0
        decay = min(self._decay, (1 + n) / (10 + n)) if self._warmup else self._decay
        get_ema_multi_avg_fn(decay)(averages, current, count)  # type: ignore[no-untyped-call]
