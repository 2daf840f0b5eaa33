"""DP-KFAC: each layer has one owner, who alone builds, inverts and applies its block of the Fisher matrix."""

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
from . import state_dict
from .assignment import Cost, assign, reassigned
from .collectives import Collectives
from .communication import Grid, share_factors, share_preconditioned
from .exchange import OwnerExchange, ReadyBuckets
from .inverses import inner, kl_scale
from .inverter import Inverses
from .layers import Layer, find_layers
from .options import Options, Scheduled, at
from .running_average import RunningFactors, pass_on
from .statistics import Statistics, sampled_loss


class DPKFAC:
    """A K-FAC preconditioner for one process or many (arXiv 2206.15143), and the schemes that it is compared with.

    Call :meth:`step` after the backward pass, before the optimizer's: it replaces the gradients of Linear and Conv2d.

    Parameters
    ----------
    model : Module or DistributedDataParallel
        A bare module that is wrapped afterwards is told by :meth:`attach_ddp`; one that never is gets its gradients
        averaged here.
    lr : float, callable of the step, or Optimizer
        Learning rate for the KL clip; an optimizer tells its first group's.
    damping : float or callable
        γ, added to the products of eigenvalues.
    kl_clip : float, callable or None
        κ; None scales nothing.
    ema_old : float or callable
        Share of the old running average; the DP-KFAC authors' code gives the *new* batch 0.95.
    factor_steps, inv_steps : int
        Steps between updates of factors and of inverses.
    inverse : "eigen" or "cholesky"
    pi_damping : bool
        Cholesky only: share the damping between the factors by their traces.
    init : "first" or "identity"
        What the running average begins with.
    factor_source : "local", "reduce", "allreduce" or "rotate"
        Whose batches make a layer's factors: the owner's; all, summed at the owner; all, summed everywhere; or the
        owner's, with another owner every ``rotate_every`` inverse updates. Local factors of unlike shards are biased.
    grad_exchange : "allreduce" or "owner"
        "owner" moves as many bytes as SGD. A gradient of a layer owned elsewhere is the local one until :meth:`step`:
        clip by norm after it. With gloo an all-to-all, else a reduce an owner; ``exchange_way`` overrules.
    strategy : "dp", "mem_opt", "comm_opt" or "hybrid"
        The last three are KAISA's (arXiv 2107.01739): factors of all layers everywhere, inverses at one rank, at all,
        or at a share of ``grad_worker_fraction``.
    symmetry_aware : bool
        Factors cross as upper triangles.
    assignment : "lpt", "round_robin" or mapping of layer names to ranks
    node_speed : sequence of float, optional
        Of each rank; the owner of more is the faster.
    process_group : ProcessGroup, optional
        Default: the world.
    fuse_mb : float
        Size of what crosses at a time.
    conv_scale, seq_reduction
        See :mod:`~farshore.algorithms.dp_kfac.factors`.
    fisher : "emp" or "mc1"
        True labels, in the normal backward pass; or labels sampled from the model: call :meth:`sample_fisher`.
    kfac_batch : int, optional
        Factors of so many samples of each batch only.
    skip_layers : sequence of str
        Patterns of names or classes that keep their plain gradients; ``exclude_out_features`` leaves out a Linear.
    accumulation_steps : int
        Backward passes between two steps; each loss is divided by it.
    factor_dtype, inv_dtype, bcast_dtype : dtype
        Of running averages, inverses, and preconditioned gradients on the wire.
    seed : int
        Of sampled labels.

    Raises
    ------
    ConfigError
        A setting is wrong or does not fit the model or the ranks.
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
            raise ConfigError(f"DPKFAC: {error}", hint="see help(DPKFAC)") from error
        ddp = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model if ddp is None else cast("nn.Module", ddp.module)
        self._lr = lr
        self.layers, self.plain = find_layers(self.model, self.options.skip_layers, self.options.exclude_out_features)
        if not self.layers:
            raise ConfigError("the model has no Linear or Conv2d for K-FAC", hint="see skip_layers")
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.inverses = Inverses(self.options, self.counts)
        self.last: dict[str, float] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._missing: set[str] = set()
        self._buckets: ReadyBuckets | None = None
        self._limit = int(self.options.fuse_mb * (1 << 20))
        self._like = self.layers[0].module.weight.detach()
        self._ddp = ddp is not None
        self._enter(process_group)
        self.factors = RunningFactors(self.options.init, self.options.factor_dtype)
        self.statistics = Statistics(
            self.model,
            self._wants_factors,
            conv_scale=self.options.conv_scale,
            seq_reduction=self.options.seq_reduction,
            sample_rows=self.options.kfac_batch,
            factor_dtype=self.options.factor_dtype,
            sampled_only=self.options.fisher == "mc1",
        )
        self.owners = assign(self.layers, self.ranks, self.options.assignment, self.cost(), self.options.node_speed)
        self.settle()
        if ddp is not None:
            self.attach_ddp(ddp)

    @property
    def rank(self) -> int:
        """This process' place in the group."""
        return self.collectives.rank

    @property
    def ranks(self) -> int:
        """Size of the group."""
        return self.collectives.ranks

    @property
    def owned(self) -> list[Layer]:
        """The layers that are this rank's."""
        return [layer for layer in self.layers if self.owners[layer.name] == self.rank]

    def cost(self, rows: Mapping[str, int] | None = None) -> Cost:
        """What a layer costs its owner, for the assignment."""
        weight = 9.0 if self.options.inverse == "eigen" else 1.0
        return Cost(self.options.factor_steps, self.options.inv_steps, weight, rows)

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Say that DDP wraps the model: it averages the gradients, or carries them to their owners.

        Raises
        ------
        ConfigError
            It wraps another model.
        """
        if ddp.module is not self.model:
            raise ConfigError("attach_ddp was given a DistributedDataParallel of another model")
        self._ddp = True
        if self._buckets is not None:
            self._buckets.close()
            self._buckets = None
        if self.options.grad_exchange == "owner" and self.ranks > 1:
            self._exchange.attach_ddp(ddp)

    def sample_fisher(self, logits: Tensor) -> None:
        """With ``fisher="mc1"``: factors by labels drawn from the model's own softmax.

        Call it before the true loss' ``backward()``; neither gradients nor DDP see anything of it.

        Parameters
        ----------
        logits : Tensor
            (N, classes), of the forward pass that is under way.
        """
        parameters = [p for layer in self._watched() if self._wants_factors(layer) for p in layer.parameters]
        if not parameters:
            return
        seed = (self.options.seed * 1_000_003 + self.steps) * 65_537 + self.rank
        loss = sampled_loss(logits, seed)
        with self.statistics.sampling():
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Update factors and inverses where they are due, and put preconditioned gradients in place.

        Every rank must call it, those that own nothing too.
        """
        with self._timed("factors"):
            self._update_factors()
        with self._timed("inverses"):
            self._update_inverses()
        with self._timed("exchange"):
            self._finish_exchange()
        with self._timed("precondition"):
            made, product = self._precondition()
        with self._timed("preconditioned"):
            self._hand_back(made, product)
        self.steps += 1
        if (
            self.options.factor_source == "rotate"
            and self.steps % (self.options.inv_steps * self.options.rotate_every) == 0
        ):
            self._rotate()

    def _wants_factors(self, layer: Layer) -> bool:
        return self.steps % self.options.factor_steps == 0 or layer.name in self._missing

    def _update_factors(self) -> None:
        wanted = [layer for layer in self.layers if self._wants_factors(layer)]
        if not wanted:
            return
        new = self.statistics.take(self.options.accumulation_steps)
        if broken := [n for n, (a, g) in new.items() if not (torch.isfinite(a).all() and torch.isfinite(g).all())]:
            self.counts["factors that were not finite"] += len(broken)
            new = {name: pair for name, pair in new.items() if name not in broken}
        source = self.scheme.source
        if source in ("reduce", "allreduce") and self.ranks > 1:
            new = share_factors(
                new,
                wanted,
                self.owners,
                self.collectives,
                everywhere=source == "allreduce",
                symmetric=self.scheme.symmetric,
                limit=self._limit,
            )
        self.factors.update(new, at(self.options.ema_old, self.steps))

    def _update_inverses(self) -> None:
        due = [layer for layer in self.layers if self._wants_inverse(layer)]
        self.inverses.make((layer for layer in due if self.owners[layer.name] == self.rank), self.factors, self.steps)
        self.inverses.share(due, self.owners, self.grid)
        # Whoever is owner knows; the others must look for no restart that is over.
        self._missing -= {layer.name for layer in due}

    def _wants_inverse(self, layer: Layer) -> bool:
        return self.steps % self.options.inv_steps == 0 or layer.name in self._missing

    def _finish_exchange(self) -> None:
        if self._buckets is not None:
            self._buckets.finish()
        else:
            self._exchange.finish()

    def _precondition(self) -> tuple[dict[str, Tensor], float]:
        """V of the layers that this rank preconditions, and Σ⟨V, D⟩ over those that it owns."""
        made: dict[str, Tensor] = {}
        product = 0.0
        for layer in self.layers:
            if not self.grid.works_on(self.owners[layer.name]):
                continue
            gradient = layer.gradient()
            inverse = self.inverses.get(layer.name)
            made[layer.name] = gradient if inverse is None else inverse(gradient).to(gradient.dtype)
            if self.ranks > 1:
                made[layer.name] = made[layer.name].to(self.options.bcast_dtype).to(gradient.dtype)
            if self.owners[layer.name] == self.rank:
                product += inner(made[layer.name], gradient)
        return made, product

    def _hand_back(self, made: dict[str, Tensor], product: float) -> None:
        """Send V to everybody and put ν V in the place of the gradients."""
        owner_only = self.options.grad_exchange == "owner" and self.ranks > 1
        clipped = self.options.kl_clip is not None
        total = torch.tensor([product], dtype=torch.float64, device=self._like.device)
        work = self.collectives.all_reduce(total, "scalars") if owner_only and clipped else None
        arriving = share_preconditioned(
            made,
            self.layers,
            self.owners,
            self.grid,
            dtype=self.options.bcast_dtype,
            limit=self._limit,
            like=self._like,
        )
        received = list(arriving)
        if work is not None:
            work.wait()
            product = float(total)
        elif clipped:
            # Everybody has every gradient: the same sum, in the same order, and nothing sent.
            product = sum(inner(v, layer.gradient()) for layer, v in sorted(received, key=lambda pair: pair[0].index))
        bound = None if self.options.kl_clip is None else at(self.options.kl_clip, self.steps)
        scale = kl_scale(product, self.lr, bound)
        for layer, v in received:
            layer.write(v * scale)
        self.last = {"nu": scale, "product": product}

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        if isinstance(self._lr, torch.optim.Optimizer):
            return float(self._lr.param_groups[0]["lr"])
        return at(self._lr, self.steps)

    def reassign(self, alive_ranks: Sequence[int], process_group: dist.ProcessGroup | None = None) -> None:
        """Go on with the ranks that are left; layers of lost owners are dealt out and begin anew.

        Parameters
        ----------
        alive_ranks : sequence of int
            Their old ranks, in the order of the new ones. Until a layer has new factors it keeps its plain gradient.
        process_group : ProcessGroup, optional
            The new group; default: the new world.
        """
        self._enter(process_group)
        if len(alive_ranks) != self.ranks:
            raise ConfigError(f"{len(alive_ranks)} ranks are alive, the group has {self.ranks}")
        options = self.options
        self.owners, lost = reassigned(
            self.layers, self.owners, alive_ranks, options.assignment, self.cost(), options.node_speed
        )
        # With factors of all layers everywhere nothing was lost but the inverse.
        self._missing = set(self.owners) if self.scheme.source == "allreduce" else lost
        self.settle()

    def _rotate(self) -> None:
        """Hand every layer's factors to the next rank, which inverts them in the next step."""
        if self.ranks == 1:
            return
        coming, factors = pass_on(self.factors, self.layers, self.owners, self.collectives, self._like)
        self.owners = {name: (owner + 1) % self.ranks for name, owner in self.owners.items()}
        self.factors.unpack(coming, factors)
        self.settle()

    def _enter(self, process_group: dist.ProcessGroup | None) -> None:
        self.collectives = Collectives(process_group)
        self.scheme = self.options.scheme(self.ranks)
        self.grid = Grid(self.collectives, self.scheme.workers)
        self._exchange = OwnerExchange(self.collectives, self.options.exchange_way)
        if self._buckets is not None:
            self._buckets.close()
        self._buckets = None

    def settle(self) -> None:
        """Hooks, state and gradient exchange for the owners as they are now."""
        watched = self._watched()
        self.statistics.watch(watched)
        if self.scheme.source != "allreduce":
            self.factors.keep({layer.name for layer in self.owned})
        self.inverses.keep({layer.name for layer in self.layers if self.grid.works_on(self.owners[layer.name])})
        if self.options.grad_exchange == "owner":
            self._exchange.owners = {p: self.owners[layer.name] for layer in self.layers for p in layer.parameters}
        if self._buckets is None and not self._ddp and self.ranks > 1:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self._buckets = ReadyBuckets(parameters, self._exchange, self._limit, self.options.accumulation_steps)

    def _watched(self) -> list[Layer]:
        return self.layers if self.scheme.source in ("reduce", "allreduce") else self.owned

    def state_dict(self) -> dict[str, Any]:
        """This rank's factors and inverses by layer, with the step and the owners.

        Inverses are in it so that a run with ``inv_steps`` above 1 goes on with the very same steps.
        """
        return state_dict.saved(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state: this rank's own part, or that of all ranks (:meth:`consolidate`), of however many.

        Layers that it lacks begin anew.

        Raises
        ------
        ConfigError
            It is of another model.
        """
        state_dict.load(self, state)
        self._missing = {layer.name for layer in self.layers if layer.name not in state["layers"]}

    def load_parts(self, part: Mapping[str, Any]) -> None:
        """Take up a state of which each rank has what was its own part; all must call it.

        Ranks, their number and the owners may be others than when it was saved: each layer goes to whoever owns it now.
        Layers that nobody has begin anew.

        Raises
        ------
        ConfigError
            It is of another model.
        """
        self.load_state_dict(state_dict.handed_over(self, part))

    def consolidate(self, dst: int = 0) -> dict[str, Any] | None:
        """The state of all ranks at one of them, None at the others; all must call it."""
        return state_dict.gathered(self, dst)

    def comm_bytes(self) -> dict[str, dict[str, int]]:
        """``{phase: {sent, received, calls}}``: bytes of this rank so far."""
        return self.collectives.told()

    def memory_usage(self) -> dict[str, int]:
        """Bytes that this rank keeps: ``A``, ``G``, ``inverse``; nothing is cached between forward and backward."""
        a, g = self.factors.sizes()
        inverses = self.inverses.nbytes()
        return {"A": a, "G": g, "inverse": inverses, "total": a + g + inverses}

    def timings(self) -> dict[str, float]:
        """Seconds of each phase of :meth:`step` so far."""
        return dict(self._seconds)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - began
