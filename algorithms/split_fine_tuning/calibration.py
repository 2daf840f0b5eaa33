"""Look at local samples once, and choose the code's directions from what the activations do.

Runs on the edge; only the few tensors in :attr:`Calibration.trunk` leave it. Source: specification of split
fine-tuning §3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, DataError
from .factors import Basis, pca_basis, principal_directions
from .families import FAMILIES
from .front import Front, OpenedBlock


@dataclass(slots=True)
class Moments:
    """Sums over tokens that are no padding; those of several edges add up with :meth:`merge`. All fp64.

    Attributes
    ----------
    tokens : int
    total : Tensor [w]
        Sum of the features a.
    square : Tensor [w, w]
        Sum of a·aᵀ.
    stream : Tensor [d] or None
        Sum of the residual stream h where it differs from a (pre-norm models).
    cross : Tensor [d, w] or None
        Sum of h·aᵀ.
    """

    tokens: int
    total: Tensor
    square: Tensor
    stream: Tensor | None = None
    cross: Tensor | None = None

    def add(self, a: Tensor, h: Tensor | None) -> None:
        """Count features ``a`` [M, w] and, for pre-norm models, stream values ``h`` [M, d]."""
        a = a.double()
        self.tokens += len(a)
        self.total += a.sum(dim=0)
        self.square += a.T @ a
        if h is not None:
            stream, cross = h.double().sum(dim=0), h.double().T @ a
            self.stream = stream if self.stream is None else self.stream + stream
            self.cross = cross if self.cross is None else self.cross + cross

    def merge(self, other: Moments) -> None:
        """Add the moments of another edge."""
        self.tokens += other.tokens
        self.total += other.total
        self.square += other.square
        if self.stream is not None and self.cross is not None and other.stream is not None and other.cross is not None:
            self.stream += other.stream
            self.cross += other.cross

    def cpu(self) -> Moments:
        """The same moments on the CPU, where they are factorised."""
        stream = None if self.stream is None else self.stream.cpu()
        cross = None if self.cross is None else self.cross.cpu()
        return Moments(self.tokens, self.total.cpu(), self.square.cpu(), stream, cross)

    @property
    def mean(self) -> Tensor:
        """Mean feature, [w]."""
        return self.total / self.tokens

    @property
    def covariance(self) -> Tensor:
        """Covariance of the features, [w, w]."""
        return self.square / self.tokens - torch.outer(self.mean, self.mean)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibration found.

    Attributes
    ----------
    front : dict[str, Tensor]
        V, S (and Q) in fp32: equal on every edge of a trunk. Empty where nothing was changed.
    trunk : dict[str, Tensor]
        U and bias, R and c, for :meth:`~.trunk.Trunk.load_codec_state`: f·r + f + d·r + d numbers, sent once.
    code_mean, code_variance : Tensor [w]
        Moments of each code channel over the samples.
    kept : float
        Share of the features' variance inside the code's directions, 0 to 1.
    tokens : int
        Tokens seen.
    """

    front: dict[str, Tensor]
    trunk: dict[str, Tensor]
    code_mean: Tensor
    code_variance: Tensor
    kept: float
    tokens: int


def calibrate(front: Front, batches: Iterable[Mapping[str, Tensor]]) -> Calibration:
    """Calibrate a front on local samples: :func:`collect`, then :func:`settle`.

    Parameters
    ----------
    front : Front
        Changed in place: its codec (``init=pca`` only) and its :attr:`~.front.Front.statistics`.
    batches : iterable of mappings
        ``input_ids``, ``attention_mask`` and maybe ``token_type_ids``, each [B, T]; 256 to 1,024 samples are
        enough.

    Returns
    -------
    Calibration
        Its ``trunk`` must reach the trunk before the first step.

    Raises
    ------
    DataError
        No samples, or fewer tokens than the code is wide.
    """
    return settle(front, collect(front, batches))


@torch.no_grad()
def collect(front: Front, batches: Iterable[Mapping[str, Tensor]]) -> Moments:
    """Sum the moments of a front's features over ``batches``, without dropout; changes nothing."""
    moments: Moments | None = None
    was_training = front.training
    front.eval()
    try:
        with _stream(front) as stream:
            for batch in batches:
                a = front.features(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
                keep = batch["attention_mask"].bool()
                if moments is None:
                    w = a.shape[-1]
                    zeros = a.new_zeros(w + w * w, dtype=torch.float64)
                    moments = Moments(0, zeros[:w].clone(), zeros[w:].view(w, w).clone())
                h = stream()
                moments.add(a[keep], None if h is None else h[keep])
    finally:
        front.train(was_training)
    # Directions need as many tokens; where nothing is decomposed, the moments of a few will do.
    needed = front.plan.width if front.codec is not None else 1
    if moments is None or moments.tokens < needed:
        seen = 0 if moments is None else moments.tokens
        raise DataError(
            f"calibration saw {seen} tokens for a code of width {front.plan.width}",
            cure="give more local samples, or a smaller rank",
        )
    return moments


@torch.no_grad()
def settle(front: Front, moments: Moments) -> Calibration:
    """Choose the codec from moments, load the front's part into it and set its code statistics.

    Frees the first matrix that the front kept for this.
    """
    plan, codec = front.plan, front.codec
    moments = moments.cpu()
    trunk: dict[str, Tensor] = {}
    if codec is not None and plan.options.init == "pca":
        basis = pca_basis(moments.mean, moments.covariance, plan.width)
        codec.start(basis, _sentence_directions(moments, plan.width, plan.options.sentence_vector))
        trunk = _trunk_state(front, basis, moments)
    front.forget_first()
    weight = torch.eye(plan.width, dtype=torch.float64)
    total = float(moments.covariance.trace())
    kept = 1.0
    if codec is not None:
        weight = codec.scales.weight.double().cpu() @ codec.directions.weight.double().cpu()
        directions = torch.linalg.qr(codec.directions.weight.double().cpu().T)[0]
        kept = float((directions.T @ moments.covariance @ directions).trace()) / total if total > 0 else 1.0
    mean, variance = weight @ moments.mean, (weight @ moments.covariance @ weight.T).diagonal().clamp(min=0)
    front.statistics.set(mean.float(), variance.float())
    if plan.options.decoder == "mlp":
        deviation = variance.sqrt()
        # A channel that never varies in the samples must not be blown up when it does in training.
        deviation = deviation.clamp(min=max(1e-3 * float(deviation.max()), 1e-12))
        trunk |= {"network.mean": mean.float(), "network.deviation": deviation.float()}
    state = front.codec_state() if trunk else {}
    return Calibration(state, trunk, mean.float(), variance.float(), kept, moments.tokens)


def _trunk_state(front: Front, basis: Basis, moments: Moments) -> dict[str, Tensor]:
    o = front.plan.options
    state: dict[str, Tensor] = {}
    if o.how == "codec" or o.residual == "project" or o.decoder == "mlp":
        r, c = _fit_stream(basis, moments) or (basis.r, basis.c)
        state |= {"residual.weight": r, "residual.bias": c}
    if o.how == "ffn_svd" and o.decoder == "linear":
        if front.first is None:
            raise ConfigError("the front no longer has its first matrix", cure="calibrate once, before training")
        u, bias = basis.through(*front.first)
        state |= {"expand.weight": u, "expand.bias": bias}
    return {name: value.float().contiguous() for name, value in state.items()}


def _fit_stream(basis: Basis, moments: Moments) -> tuple[Tensor, Tensor] | None:
    """Least squares for the stream of a pre-norm block, h ≈ R·z + c: R = Cov(h, z)·Cov(z)⁻¹."""
    if moments.cross is None or moments.stream is None:
        return None
    h = moments.stream / moments.tokens
    encode = basis.s @ basis.v
    cross = (moments.cross / moments.tokens - torch.outer(h, moments.mean)) @ encode.T
    codes = encode @ moments.covariance @ encode.T
    r = cross @ torch.linalg.pinv(codes, hermitian=True)
    return r, h - r @ (encode @ moments.mean)


def _sentence_directions(moments: Moments, rank: int, q: int) -> Tensor | None:
    """Q [q, d]: the principal directions that come next after those the tokens' codes carry."""
    if q == 0:
        return None
    directions = principal_directions(moments.covariance)
    start = min(rank, len(directions) - q)
    return directions[start : start + q]


@contextmanager
def _stream(front: Front) -> Iterator[Callable[[], Tensor | None]]:
    """The residual stream of the opened block at its last pass, where it is not the features themselves."""
    family = FAMILIES[front.plan.family]
    opened = [m for m in front.model.modules() if isinstance(m, OpenedBlock)]
    seen: list[Tensor] = []
    if not family.stream_norm or not opened:
        yield lambda: None
        return

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[:] = [args[0]]

    handle = opened[0].block.get_submodule(family.stream_norm).register_forward_pre_hook(keep)
    try:
        yield lambda: seen[0]
    finally:
        handle.remove()
