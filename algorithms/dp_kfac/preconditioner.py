"""The DP-KFAC preconditioner: the owner of a layer computes, inverts and applies its block of the Fisher matrix."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.errors import ConfigError
from ...models.wrappers import unwrap
from . import ownership, phases, state_dict
from .assignment import Cost, assign
from .collectives import Collectives
from .communication import Grid
from .exchange import GradientBuckets, OwnerExchange
from .inverter import Inverses
from .layers import Layer, find_layers
from .options import Options, Scheduled, value_at
from .running_average import RunningFactors
from .statistics import Distribution, Statistics, sampled_loss


class DPKFAC:
    """A K-FAC preconditioner for one process or many (arXiv 2206.15143), and the schemes that it is compared with.

    Call :meth:`step` after the backward pass and before the optimizer's step: it replaces the gradients of the model's
    Linear and Conv2d layers. ``docs/methods/dp_kfac.md`` describes the method and its settings.

    Parameters
    ----------
    model : Module or DistributedDataParallel
        A module that is wrapped in DDP later needs :meth:`attach_ddp`. Without DDP this class averages the gradients.
    lr : float, callable of the step, or Optimizer
        Learning rate η for KL clipping; of an optimizer, that of its first parameter group.
    process_group : ProcessGroup, optional
        Default: the default group; without one, this process is the only rank.

    Other Parameters
    ----------------
    damping : float or callable of the step, default 0.03
        γ, added to the products of eigenvalues of A and G.
    kl_clip : float, callable of the step or None, default 1e-3
        κ; None: no clipping.
    ema_old : float or callable of the step, default 0.95
        Weight of the old value in the running averages. The DP-KFAC authors' code gives 0.95 to the *new* batch.
    factor_steps, inv_steps : int, default 10 and 100
        Steps between updates of factors and of inverses.
    inverse : {"eigen", "cholesky"}
    pi_damping : bool, default True
        Cholesky only: split the damping between the factors by their traces.
    init : {"first", "identity"}
        Initial value of the running averages: the first batch's factors, or the identity.
    factor_source : {"local", "reduce", "allreduce", "rotate"}
        Batches that a layer's factors are computed from: the owner's; those of all ranks, averaged at the owner or on
        all ranks; or the owner's, with another owner every ``rotate_every`` updates of inverses. Local factors are
        biased if the ranks' data differ.
    grad_exchange : {"allreduce", "owner"}
        ``owner``: average a layer's gradient at its owner only, which makes a step send as many bytes as SGD. Until
        :meth:`step` the gradients are then local ones: clip by norm after it.
    exchange_way : {"all_to_all", "reduce"}, optional
        Collective of ``grad_exchange="owner"``; default: all-to-all on gloo, else one reduce per owner.
    strategy : {"dp", "mem_opt", "comm_opt", "hybrid"}
        The last three are KAISA's (arXiv 2107.01739): factors of all layers on all ranks; inverses on the owner, on all
        ranks, or on the share ``grad_worker_fraction`` of the ranks.
    symmetry_aware : bool, default False
        Send factors as upper triangles.
    assignment : {"lpt", "round_robin"} or mapping of layer names to ranks
    node_speed : sequence of float, optional
        Relative speed of each rank, for ``lpt``.
    fuse_mb : float, default 25
        Bucket size of collectives in MiB.
    conv_scale, seq_reduction
        See :mod:`~farshore.algorithms.dp_kfac.factors`.
    fisher : {"emp", "mc1"}
        Empirical Fisher: true labels, in the normal backward pass. ``mc1``: labels sampled from the model, see
        :meth:`sample_fisher`.
    kfac_batch : int, optional
        Compute factors from the first samples of each batch only.
    skip_layers : sequence of str
        Regular expressions of names or classes of modules that are not preconditioned.
    exclude_out_features : int, optional
        Do not precondition Linear layers with this many outputs.
    accumulation_steps : int, default 1
        Backward passes per step; each loss must be divided by it.
    factor_dtype, inv_dtype, bcast_dtype : dtype
        Types of running averages, inverses, and preconditioned gradients when sent.
    seed : int
        Seed of sampled labels.

    Attributes
    ----------
    layers : list of Layer
        The preconditioned layers in module order.
    skipped : dict of str
        Other modules with parameters, with the reason why they are not preconditioned.
    owners : dict of str
        Owner rank of each layer.
    steps : int
        Steps so far.
    last_metrics : dict of str
        ``nu``, the factor of KL clipping, and ``product``, Σ⟨V, D⟩, of the last step.
    counts : Counter
        ``nonfinite_factors`` and ``failed_inverses`` so far.

    Raises
    ------
    ConfigError
        A setting is invalid, or does not fit the model or the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: Scheduled | torch.optim.Optimizer,
        process_group: dist.ProcessGroup | None = None,
        **settings: Any,
    ) -> None:
        try:
            self.options = Options(**settings)
        except TypeError as error:
            raise ConfigError(f"DPKFAC: {error}", hint="help(DPKFAC) lists the settings") from error
        ddp = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model if ddp is None else cast("nn.Module", ddp.module)
        self._lr = lr
        self.layers, self.skipped = find_layers(self.model, self.options.skip_layers, self.options.exclude_out_features)
        if not self.layers:
            raise ConfigError("the model has no Linear or Conv2d for K-FAC", hint="check skip_layers")
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.inverses = Inverses(self.options, self.counts)
        self.last_metrics: dict[str, float] = {}
        #: Layers without state on any rank, e.g. after a loss of their owner: due in the next step at any interval.
        self.missing = {layer.name for layer in self.layers}
        #: Those of them before the last step.
        self._first: set[str] = set()
        #: Forward passes with sampled labels in the current step.
        self._passes = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._buckets: GradientBuckets | None = None
        #: Size of the buckets of collectives.
        self.bucket_bytes = int(self.options.fuse_mb * (1 << 20))
        #: Has the device and dtype of the gradients.
        self.reference = self.layers[0].module.weight.detach()
        self._ddp = ddp is not None
        self.set_group(process_group)
        self.factors = RunningFactors(self.options.init, self.options.factor_dtype)
        self.statistics = Statistics(
            self.model,
            self.factors_due,
            conv_scale=self.options.conv_scale,
            seq_reduction=self.options.seq_reduction,
            sample_rows=self.options.kfac_batch,
            factor_dtype=self.options.factor_dtype,
            sampled_only=self.options.fisher == "mc1",
        )
        self.owners = assign(self.layers, self.ranks, self.options.assignment, self.cost(), self.options.node_speed)
        self.apply_owners()
        if ddp is not None:
            self.attach_ddp(ddp)

    @property
    def rank(self) -> int:
        """This process' rank in the group."""
        return self.collectives.rank

    @property
    def ranks(self) -> int:
        """Number of ranks in the group."""
        return self.collectives.ranks

    @property
    def owned_layers(self) -> list[Layer]:
        """The layers that this rank owns."""
        return [layer for layer in self.layers if self.owners[layer.name] == self.rank]

    def cost(self, rows: Mapping[str, int] | None = None) -> Cost:
        """Return the cost model of the assignment; ``rows`` as in :class:`.assignment.Cost`."""
        weight = 9.0 if self.options.inverse == "eigen" else 1.0
        return Cost(self.options.factor_steps, self.options.inv_steps, weight, rows)

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Let DDP, which wraps the model, average the gradients; with ``grad_exchange="owner"`` through a hook.

        Raises
        ------
        ConfigError
            ``ddp`` wraps another model. A compiled model and the model that was compiled are the same.
        """
        if unwrap(ddp) is not unwrap(self.model):
            raise ConfigError("attach_ddp: the DistributedDataParallel wraps another model")
        self._ddp = True
        if self._buckets is not None:
            self._buckets.close()
            self._buckets = None
        if self.options.grad_exchange == "owner" and self.ranks > 1:
            self._exchange.attach_ddp(ddp)

    def sample_fisher(self, outputs: Tensor, distribution: Distribution = "classes") -> None:
        """Compute the factors from labels that are drawn from the model's outputs, for ``fisher="mc1"``.

        Call it before the ``backward()`` of the true loss. It changes no gradient and starts no DDP communication.

        Parameters
        ----------
        outputs : Tensor
            Of the current forward pass: logits (N, classes, …), or means (N, …) of normal distributions.
        distribution : {"classes", "normal"}
        """
        parameters = [p for layer in self._hooked_layers() if self.factors_due(layer) for p in layer.parameters]
        if not parameters:
            return
        seed = (self.options.seed * 1_000_003 + self.steps) * 65_537 + self.rank + self._passes * 4_294_967_291
        self._passes += 1
        loss = sampled_loss(outputs, seed, distribution) * (
            self.statistics.grad_scale / self.options.accumulation_steps
        )
        with self.statistics.sampling():
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Update factors and inverses if due, and replace the gradients by preconditioned ones.

        A collective: every rank must call it, also one that owns no layer.
        """
        self._first = set(self.missing)
        self.statistics.check_seen(layer for layer in self._hooked_layers() if self.factors_due(layer))
        with self._timed("factors"):
            phases.update_factors(self)
        with self._timed("inverses"):
            phases.update_inverses(self)
        with self._timed("exchange"):
            self._finish_exchange()
        with self._timed("precondition"):
            own, product = phases.precondition(self)
        with self._timed("preconditioned"):
            self.last_metrics = phases.broadcast_and_write(self, own, product)
        self.steps += 1
        self._passes = 0
        if (
            self.options.factor_source == "rotate"
            and self.steps % (self.options.inv_steps * self.options.rotate_every) == 0
        ):
            ownership.rotate_owners(self)

    def discard_step(self) -> None:
        """Delete the factors and inverses that the last step gave to layers without any.

        Call it on all ranks if the optimizer does not use the step because gradients were not finite. These layers get
        their first factors in the next step.
        """
        known = {layer.name for layer in self.layers} - self._first
        self.factors.keep_only(known)
        self.inverses.keep_only(known)
        self.missing |= self._first

    def factors_due(self, layer: Layer) -> bool:
        """Return whether a layer's factors are computed in the current step; the same on all ranks."""
        return self.steps % self.options.factor_steps == 0 or layer.name in self.missing

    def inverses_due(self, layer: Layer) -> bool:
        """Return whether a layer's inverse is computed in the current step; the same on all ranks."""
        return self.steps % self.options.inv_steps == 0 or layer.name in self.missing

    def _finish_exchange(self) -> None:
        if self._buckets is not None:
            self._buckets.finish()
        else:
            self._exchange.finish()

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        if isinstance(self._lr, torch.optim.Optimizer):
            return float(self._lr.param_groups[0]["lr"])
        return value_at(self._lr, self.steps)

    def reassign(self, alive_ranks: Sequence[int], process_group: dist.ProcessGroup | None = None) -> None:
        """Continue with the remaining ranks; layers of lost owners get new owners.

        The new owners start without factors. Until they have some, the layers' gradients are not preconditioned.

        Parameters
        ----------
        alive_ranks : sequence of int
            Old ranks of the remaining processes, in the order of their new ranks.
        process_group : ProcessGroup, optional
            The new group; default: the default group.

        Raises
        ------
        ConfigError
            The group has another number of ranks.
        """
        self.set_group(process_group)
        ownership.reassign_layers(self, alive_ranks)

    def set_group(self, process_group: dist.ProcessGroup | None) -> None:
        """Use a process group; owners stay as they are."""
        self.collectives = Collectives(process_group)
        self.scheme = self.options.scheme(self.ranks)
        self.grid = Grid(self.collectives, self.scheme.workers)
        self._exchange = OwnerExchange(self.collectives, self.options.exchange_way)
        if self._buckets is not None:
            self._buckets.close()
        self._buckets = None

    def apply_owners(self) -> None:
        """Adapt hooks, state and gradient exchange to :attr:`owners`."""
        self.statistics.set_hooks(self._hooked_layers())
        if self.scheme.source != "allreduce":
            self.factors.keep_only({layer.name for layer in self.owned_layers})
        self.inverses.keep_only(
            {layer.name for layer in self.layers if self.grid.preconditions(self.owners[layer.name])}
        )
        if self.options.grad_exchange == "owner":
            self._exchange.owners = {p: self.owners[layer.name] for layer in self.layers for p in layer.parameters}
        if self._buckets is None and not self._ddp and self.ranks > 1:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self._buckets = GradientBuckets(
                parameters, self._exchange, self.bucket_bytes, self.options.accumulation_steps
            )

    def _hooked_layers(self) -> list[Layer]:
        return self.layers if self.scheme.source in ("reduce", "allreduce") else self.owned_layers

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's shard: factors and inverses by layer, the step and the owners.

        It contains the inverses so that a resumed run with ``inv_steps`` above 1 equals an uninterrupted one.
        """
        return state_dict.local_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state: this rank's shard, or a consolidated state of any number of ranks (:meth:`consolidate`).

        Layers that are missing in it start without factors.

        Raises
        ------
        ConfigError
            The state is of another model.
        """
        state_dict.load(self, state)
        self.missing = {layer.name for layer in self.layers if layer.name not in state["layers"]}

    def load_sharded_state_dict(self, shard: Mapping[str, Any]) -> None:
        """Load a state of which each rank has the shard that it saved; a collective.

        The ranks, their number and the owners may have changed since: each layer's state is sent to its current owner.
        Layers that are missing in all shards start without factors.

        Raises
        ------
        ConfigError
            The state is of another model.
        """
        self.load_state_dict(state_dict.redistribute_state(self, shard))

    def consolidate(self, dst: int = 0) -> dict[str, Any] | None:
        """Return the state of all ranks on rank ``dst``, None on the others; a collective."""
        return state_dict.gather_state(self, dst)

    def comm_bytes(self) -> dict[str, dict[str, int]]:
        """Return ``{phase: {sent, received, calls}}``: bytes and calls of this rank so far."""
        return self.collectives.counters()

    def memory_usage(self) -> dict[str, int]:
        """Return the bytes of this rank's state: ``A``, ``G``, ``inverse`` and ``total``. No activations are cached."""
        a, g = self.factors.sizes()
        inverses = self.inverses.nbytes()
        return {"A": a, "G": g, "inverse": inverses, "total": a + g + inverses}

    def timings(self) -> dict[str, float]:
        """Return the seconds spent in each phase of :meth:`step` so far."""
        return dict(self._seconds)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start
