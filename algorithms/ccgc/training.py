"""The training of one rank: epochs, evaluations and what a checkpoint holds; independent of how ranks were started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.devices import DeviceName
from ...core.message import Array
from ...core.seeds import Seed
from ...data.graph_set import Floats, Ints
from ...models.devices import choose_device
from .cluster_loss import cluster_loss
from .confident import confident_nodes, confident_sets, draw_pairs
from .encoders import Encoders
from .kmeans import Clustering, kmeans
from .metrics import contingency, metrics_of
from .problem import Problem
from .ranks import Alone, Ranks
from .selection import SCORES, Evaluated, consensus, is_better, score
from .settings import CCGCSettings, Score
from .warmup import warmup_loss

#: Parts of a loss that is skipped since fewer than two clusters have confident nodes.
_NO_LOSS = {"loss": 0.0, "loss_pos": 0.0, "loss_neg": 0.0, "confident": 0.0}


class Training:
    """One rank's encoders, optimizer and clusters.

    Parameters
    ----------
    settings : CCGCSettings
    problem : Problem
    seed : Seed
        Of weights, K-means and pairs; the same on all ranks.
    ranks : Ranks, optional
        Default: this rank is alone.
    device : str

    Attributes
    ----------
    epoch : int
        The next epoch.
    labels, distances : array, shape [N]
        The newest clustering of all nodes.
    history : list of dict
        One entry per evaluation.
    selected : dict
        State of the selected evaluation: ``labels`` and weights.
    clusterings : list of int16 array, shape [N]
        Labels of each evaluation.
    """

    def __init__(
        self,
        settings: CCGCSettings,
        problem: Problem,
        seed: Seed,
        ranks: Ranks | None = None,
        device: DeviceName = "cpu",
    ) -> None:
        self.settings, self.problem, self.seed, self.ranks = settings, problem, seed, ranks or Alone()
        self.device = choose_device(device)
        self._x = problem.smoothed.to(self.device)
        weights = seed.child("weights").value % (1 << 63)
        shared = settings.views == "shared"
        self.encoders = Encoders(self._x.shape[1], settings.dim, weights, shared=shared).to(self.device)
        self._parameters = list(self.encoders.parameters())
        # The seldom used capturable and foreach forms would change the rounding between devices and versions.
        self._adam = torch.optim.Adam(self._parameters, lr=settings.lr, foreach=False)
        self.epoch = 0
        self.labels: Ints = np.zeros(0, np.int64)
        self.distances: Floats = np.zeros(0, np.float32)
        self.history: list[dict[str, Any]] = []
        self.selected: dict[str, Array] = {}
        self.clusterings: list[Array] = []
        self._confident: tuple[list[Ints], Tensor, Ints] | None = None

    # -- epochs ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Cluster the smoothed attributes; the first pseudo labels."""
        problem, settings = self.problem, self.settings
        self._set_clusters(
            kmeans(
                self._x,
                problem.clusters,
                problem.rows,
                self.ranks,
                self.seed.child("start"),
                runs=settings.kmeans_starts,
                library=settings.kmeans,
            )
        )

    def step(self) -> dict[str, float]:
        """Train one epoch; returns the loss, its parts and the number of confident nodes, the same on all ranks."""
        epoch, settings = self.epoch, self.settings
        self.epoch += 1
        if epoch < settings.warmup:
            first, second = self.encoders(self._x)
            loss = warmup_loss(first, second, self.problem.rows.nodes, self.ranks)
            self._descend(loss)
            return {**_NO_LOSS, "loss": float(loss.detach())}
        sets, x, at = self._confident_rows()
        if len(sets) < 2:
            return dict(_NO_LOSS)
        pairs = draw_pairs(sets, settings, self.seed.child("pairs", epoch))
        problem = self.problem
        parts = cluster_loss(self.encoders(x), at, pairs, problem.clusters, settings, problem.rows, self.ranks)
        figures = {"loss": float(parts.total.detach()), "loss_pos": float(parts.positive.detach())}
        if figures["loss_pos"] != 0:
            self._descend(parts.total)
        count = float(sum(map(len, sets)))
        return {**figures, "loss_neg": float(parts.negative.detach()), "confident": count}

    def _confident_rows(self) -> tuple[list[Ints], Tensor, Ints]:
        """Return the sets, the rows of this rank's confident nodes, and the index of each node among these rows."""
        if self._confident is None:
            rows, settings = self.problem.rows, self.settings
            confident = confident_nodes(self.distances, settings.tau)
            sets = confident_sets(self.labels, confident, skip_first=settings.skip_first_cluster)
            used = np.zeros(rows.nodes, bool)
            for each in sets:
                used[each] = True
            own = used[rows.own]
            at = np.full(rows.nodes, -1)
            at[rows.own[own]] = np.arange(own.sum())
            self._confident = sets, self._x[torch.from_numpy(own).to(self.device)], at
        return self._confident

    def _descend(self, loss: Tensor) -> None:
        """Take one step of Adam; with ``accumulate_grads`` on the sum of all gradients so far."""
        gradients = torch.autograd.grad(loss, self._parameters)
        if self.ranks.size > 1:
            flat = self.ranks.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            gradients = tuple(part.view_as(old) for part, old in zip(parts, gradients, strict=True))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            adds = self.settings.accumulate_grads and parameter.grad is not None
            parameter.grad = parameter.grad + gradient if adds and parameter.grad is not None else gradient
        self._adam.step()

    # -- evaluations ----------------------------------------------------------------------------------------------

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due after the newest epoch."""
        return (self.epoch - 1) % self.settings.kmeans_every == 0 or self.epoch == self.settings.epochs

    def evaluate(self, losses: Mapping[str, float]) -> dict[str, Any]:
        """Cluster the embedding, score the clustering, and remember it if it is the best; returns the scores."""
        problem, settings, epoch = self.problem, self.settings, self.epoch - 1
        seed = self.seed.child("clusters", epoch)
        first, second, fused = self.encoders.embed(self._x)
        clustering = kmeans(
            fused,
            problem.clusters,
            problem.rows,
            self.ranks,
            seed,
            runs=settings.kmeans_starts,
            library=settings.kmeans,
        )
        self._set_clusters(clustering)
        found = Evaluated(first, second, fused, clustering)
        rules: tuple[Score, ...] = () if settings.rule == "consensus" else (settings.rule,)
        rules = SCORES if settings.all_rules else rules
        scores: dict[str, float] = {rule: score(rule, found, problem, self.ranks, seed.child(rule)) for rule in rules}
        entry: dict[str, Any] = {"epoch": epoch, **losses, "inertia_ratio": clustering.ratio, **scores}
        entry |= {"kmeans_iterations": clustering.iterations, **self.metrics(self.labels)}
        self.clusterings.append(self.labels.astype(np.int16))
        if self._is_selected(entry):
            self.selected = {"labels": self.labels, **self._weights()}
            entry["selected"] = True
        self.history.append(entry)
        return entry

    def metrics(self, labels: Ints) -> dict[str, float]:
        """Compare labels of all nodes with the true ones; empty without those. The ranks add the contingency table."""
        return {} if self.problem.labels is None else metrics_of(self.contingency(labels))

    def contingency(self, labels: Ints) -> Ints:
        """Return the contingency table (K, C) of labels of all nodes; a collective."""
        problem = self.problem
        assert problem.labels is not None
        own = contingency(problem.labels, labels[problem.rows.own], problem.clusters, problem.classes)
        return np.asarray(self.ranks.total(torch.from_numpy(own)))

    def _is_selected(self, entry: Mapping[str, Any]) -> bool:
        settings = self.settings
        if settings.select == "last" or (settings.select == "best_unsup" and settings.rule == "consensus"):
            return True
        past = [each for each in self.history if each.get("selected")]
        name: str = "acc" if settings.select == "best_oracle" else settings.rule
        best = past[-1][name] if past else None
        if name == "acc":
            return best is None or entry["acc"] >= best
        assert settings.rule != "consensus"
        return is_better(settings.rule, entry[name], best)

    def _set_clusters(self, clustering: Clustering) -> None:
        self.labels, self.distances = clustering.labels.cpu().numpy(), clustering.distances.cpu().numpy()
        self._confident = None

    def consensus(self) -> Ints:
        """Return what the later evaluations have in common; a collective."""
        return consensus(self.clusterings, self.problem, self.ranks, self.seed.child("consensus"))

    def result_labels(self) -> Ints:
        """Return the clusters that are the result, those of the selected evaluation or the consensus; a collective."""
        if self.settings.select == "best_unsup" and self.settings.rule == "consensus":
            return self.consensus()
        return self.selected["labels"].astype(np.int64)

    def selected_embedding(self) -> Tensor:
        """Return the fused embedding of the selected evaluation, this rank's rows."""
        encoders = Encoders(self._x.shape[1], self.settings.dim, 0, shared=self.settings.views == "shared")
        weights = {name: torch.from_numpy(self.selected[f"weights.{name}"]) for name in encoders.state_dict()}
        encoders.load_state_dict(weights)
        return encoders.to(self.device).embed(self._x)[2]

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Array]:
        return {f"weights.{name}": value.cpu().numpy().copy() for name, value in self.encoders.state_dict().items()}

    def arrays(self) -> dict[str, Array]:
        """Return the tensors of a checkpoint, the same on all ranks."""
        found: dict[str, Array] = {"labels": self.labels, "distances": self.distances, **self._weights()}
        found |= {f"selected.{name}": array for name, array in self.selected.items()}
        found["clusterings"] = np.array(self.clusterings, np.int16).reshape(len(self.clusterings), -1)
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is not None and self.settings.accumulate_grads:
                found[f"gradient.{index}"] = parameter.grad.cpu().numpy()
            for name, value in self._adam.state.get(parameter, {}).items():
                found[f"adam.{index}.{name}"] = value.cpu().numpy()
        return found

    def load(self, arrays: Mapping[str, Array], history: list[dict[str, Any]], epoch: int) -> None:
        """Continue after ``epoch`` epochs, from what :meth:`arrays` and :attr:`history` were then."""
        self.epoch, self.history = epoch, history
        self.labels, self.distances = arrays["labels"].astype(np.int64), arrays["distances"].astype(np.float32)
        self._confident = None
        self.clusterings = list(arrays["clusterings"].copy())
        self.selected = {k.removeprefix("selected."): v for k, v in arrays.items() if k.startswith("selected.")}
        names = self.encoders.state_dict()
        self.encoders.load_state_dict({name: torch.from_numpy(arrays[f"weights.{name}"].copy()) for name in names})
        for index, parameter in enumerate(self._parameters):
            gradient = arrays.get(f"gradient.{index}")
            parameter.grad = None if gradient is None else torch.from_numpy(gradient.copy()).to(self.device)
            prefix = f"adam.{index}."
            state = {
                k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)
            }
            if state:
                self._adam.state[parameter] = {k: v if k == "step" else v.to(self.device) for k, v in state.items()}
