"""The preconditioner as a data-parallel run holds it: its state as named arrays, its figures for the run's metrics."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.message import Array
from .config import DPKFACRun
from .inverter import Inverses
from .layers import Layer
from .preconditioner import DPKFAC
from .running_average import RunningFactors

_PREFIX = "kfac."


class _NoInverses(Inverses):
    """As large on the wire as others, and made at once."""

    def make(self, layers: Iterable[Layer], factors: RunningFactors, step: int) -> None:
        pass


class NodeAdapter:
    """See :class:`~farshore.engines.data_parallel.training.Preconditioner`."""

    def __init__(self, config: DPKFACRun, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.kfac = DPKFAC(model, lr=optimizer, **config.settings())
        self._sampled = config.fisher == "mc1"
        self._first_owners: Mapping[str, int] = {}

    def kind_of(self, step: int) -> Hashable:
        """Whether factors and inverses are due, and whose turn it is to own."""
        options = self.kfac.options
        turn = options.inv_steps * options.rotate_every if options.factor_source == "rotate" else 0
        turned = (step // turn % self.kfac.ranks, (step + 1) % turn == 0) if turn else ()
        return step % options.factor_steps == 0, step % options.inv_steps == 0, turned

    def pretend(self, step: int) -> None:
        """The next step is this one, and nothing is inverted in it."""
        kfac, options = self.kfac, self.kfac.options
        if not isinstance(kfac.inverses, _NoInverses):
            kfac.inverses, self._first_owners = _NoInverses(options, kfac.counts), dict(kfac.owners)
        kfac.steps = step
        if options.factor_source == "rotate":
            turns = step // (options.inv_steps * options.rotate_every)
            kfac.owners = {name: (owner + turns) % kfac.ranks for name, owner in self._first_owners.items()}
            kfac.settle()

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """The model is wrapped."""
        self.kfac.attach_ddp(ddp)

    def saw(self, logits: Tensor) -> None:
        """The forward pass is done."""
        if self._sampled:
            self.kfac.sample_fisher(logits)

    def step(self) -> None:
        """Precondition."""
        self.kfac.step()

    def figures(self) -> Mapping[str, float]:
        """ν and ⟨V, D⟩ of the last step, and what this rank keeps."""
        told = {"nu": self.kfac.last["nu"], "product": self.kfac.last["product"]}
        return {**told, "state_bytes": float(self.kfac.memory_usage()["total"])}

    def arrays(self) -> dict[str, Array]:
        """Factors and inverses of this rank's layers, as ``kfac.<layer>/<tensor>``."""
        layers = self.kfac.state_dict()["layers"]
        return {f"{_PREFIX}{layer}/{name}": t.numpy() for layer, parts in layers.items() for name, t in parts.items()}

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Take up what was this rank's part; layers go to whoever owns them now, those that nobody has begin anew."""
        layers: dict[str, dict[str, Tensor]] = {}
        for key, array in arrays.items():
            if key.startswith(_PREFIX):
                layer, _, name = key.removeprefix(_PREFIX).rpartition("/")
                layers.setdefault(layer, {})[name] = torch.from_numpy(array.copy())
        self.kfac.load_parts({"steps": step, "inverse": self.kfac.options.inverse, "layers": layers})
