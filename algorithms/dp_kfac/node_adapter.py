"""Adapts the preconditioner to a data-parallel run: state as named arrays, metrics, dry runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.errors import ConfigError
from ...core.message import Array
from ...engines.data_parallel.task import Loss
from .inverter import Inverses
from .layers import Layer
from .preconditioner import DPKFAC
from .running_average import RunningFactors

_PREFIX = "kfac."


class _NoInverses(Inverses):
    """Placeholders for a dry run: as large as real inverses, but not computed."""

    def compute(self, layers: Iterable[Layer], factors: RunningFactors, step: int) -> None:
        pass


class NodeAdapter:
    """Implements :class:`~farshore.engines.data_parallel.preconditioner.Preconditioner` with a :class:`DPKFAC`.

    Parameters
    ----------
    model : Module
    optimizer : Optimizer
        Its first group has the learning rate of KL clipping.
    settings : Mapping
        Keyword arguments of :class:`DPKFAC`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> None:
        self.kfac = DPKFAC(model, lr=optimizer, **settings)
        self._samples_labels = self.kfac.options.fisher == "mc1"
        self._first_owners: Mapping[str, int] = {}

    def traffic_class(self, step: int) -> Hashable:
        """Return whether factors and inverses are updated in a step, and with rotating owners the rotation."""
        options = self.kfac.options
        period = options.inv_steps * options.rotate_every if options.factor_source == "rotate" else 0
        rotation = (step // period % self.kfac.ranks, (step + 1) % period == 0) if period else ()
        return step % options.factor_steps == 0, step % options.inv_steps == 0, rotation

    def set_dry_step(self, step: int) -> None:
        """Make ``step`` the next step, without computing inverses from now on."""
        kfac, options = self.kfac, self.kfac.options
        if not isinstance(kfac.inverses, _NoInverses):
            kfac.inverses, self._first_owners = _NoInverses(options, kfac.counts), dict(kfac.owners)
        kfac.steps, kfac.missing = step, set()  # in a run all layers have state after step 0, where all are due
        if options.factor_source == "rotate":
            rotations = step // (options.inv_steps * options.rotate_every)
            kfac.owners = {name: (owner + rotations) % kfac.ranks for name, owner in self._first_owners.items()}
            kfac.apply_owners()

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Use DDP for the gradient exchange."""
        self.kfac.attach_ddp(ddp)

    def set_gradient_scale(self, scale: float) -> None:
        """Set the factor of the losses and gradients of the next step."""
        self.kfac.statistics.grad_scale = scale

    def after_forward(self, loss: Loss) -> None:
        """With ``fisher=mc1``, compute the factors from sampled labels."""
        if not self._samples_labels:
            return
        if loss.outputs is None:
            raise ConfigError(
                "fisher=mc1 samples labels from the model's outputs, but the task's loss does not name them",
                hint="use fisher=emp, or return the outputs in the task's Loss",
            )
        self.kfac.sample_fisher(loss.outputs, loss.distribution)

    def step(self) -> None:
        """Precondition the gradients."""
        self.kfac.step()

    def step_skipped(self) -> None:
        """Ignore what the last step learned, as its gradients were not finite."""
        self.kfac.discard_step()

    def metrics(self) -> Mapping[str, float]:
        """Return ν and Σ⟨V, D⟩ of the last step, and the bytes of this rank's state."""
        values = {"nu": self.kfac.last_metrics["nu"], "product": self.kfac.last_metrics["product"]}
        return {**values, "state_bytes": float(self.kfac.memory_usage()["total"])}

    def arrays(self) -> dict[str, Array]:
        """Return factors and inverses of this rank's layers, as ``kfac.<layer>/<tensor>``."""
        layers = self.kfac.state_dict()["layers"]
        return {
            f"{_PREFIX}{layer}/{name}": t.cpu().numpy()
            for layer, tensors in layers.items()
            for name, t in tensors.items()
        }

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Restore this rank's shard; tensors move to the current owners, layers that no rank has start empty."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, array in arrays.items():
            if key.startswith(_PREFIX):
                layer, _, name = key.removeprefix(_PREFIX).rpartition("/")
                layers.setdefault(layer, {})[name] = torch.from_numpy(array.copy())
        self.kfac.load_sharded_state_dict({"steps": step, "inverse": self.kfac.options.inverse, "layers": layers})
