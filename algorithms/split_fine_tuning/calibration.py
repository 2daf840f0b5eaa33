"""Look at local samples once, and choose the code's directions from what the activations do.

Runs on the edge; only the few tensors of :class:`~.codec_start.CodecStart` leave it. Source: specification of split
fine-tuning §3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import DataError
from ...engines.split.architectures import ARCHITECTURES
from ...engines.split.factors import fix_signs, principal_directions
from .codec_start import CodecStart
from .front import Front, OpenedBlock
from .plan import SplitPlan


@dataclass(slots=True)
class Moments:
    """Sums over tokens that are no padding. All fp64.

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

    def cpu(self) -> Moments:
        """The same moments on the CPU, where they are factorized."""
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
    start : CodecStart
        First values of the code, which the front has taken over: the trunk and other edges must do the same.
    kept : float
        Share of the features' variance inside the code's directions, 0 to 1.
    tokens : int
        Tokens seen.
    """

    start: CodecStart
    kept: float
    tokens: int


def calibrate(front: Front, batches: Iterable[Mapping[str, Tensor]], dtype: torch.dtype = torch.float32) -> Calibration:
    """Calibrate a front on local samples: :func:`collect`, then :func:`settle`.

    Parameters
    ----------
    front : Front
        Changed in place: its codec (``init=pca`` only) and its :attr:`~.front.Front.statistics`.
    batches : iterable of mappings
        ``input_ids``, ``attention_mask`` and maybe ``token_type_ids``, each [B, T]; 256 to 1,024 samples are
        enough.
    dtype : torch.dtype
        What matrices are rounded to before anybody uses them, so that they can travel in it.

    Raises
    ------
    DataError
        No samples, or fewer tokens than the code is wide.
    """
    return settle(front, collect(front, batches), dtype)


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
            hint="give more local samples, or a smaller rank",
        )
    return moments


@torch.no_grad()
def settle(front: Front, moments: Moments, dtype: torch.dtype = torch.float32) -> Calibration:
    """Choose the codec from moments, and have the front take it over; ``dtype`` as for :func:`calibrate`."""
    plan, codec = front.plan, front.codec
    moments = moments.cpu()
    found: dict[str, Tensor] = {}
    weight, kept = torch.eye(plan.width, dtype=torch.float64), 1.0
    if codec is not None:
        v = codec.directions.weight.double().cpu()
        weight = codec.scales.weight.double().cpu() @ v
        if plan.options.init == "pca":
            found = {name: tensor.float() for name, tensor in _principal(plan, moments, dtype).items()}
            v = weight = found["directions"].double()
        kept = _share_kept(v, moments.covariance)
    mean, variance = weight @ moments.mean, (weight @ moments.covariance @ weight.T).diagonal().clamp(min=0)
    start = CodecStart(mean.float(), variance.float(), **found)
    front.take(start)
    return Calibration(start, kept, moments.tokens)


def _principal(plan: SplitPlan, moments: Moments, dtype: torch.dtype) -> dict[str, Tensor]:
    """Directions of most variance and what is rebuilt from them, in ``dtype``; everything is fitted to those."""
    v = fix_signs(principal_directions(moments.covariance)[: plan.width]).to(dtype)
    found = {"directions": v, "mean": moments.mean.to(dtype)}
    if (q := plan.options.sentence_vector) > 0:
        found["sentence"] = _sentence_directions(moments, plan.width, q).to(dtype)
    if (stream := _fit_stream(v.double(), moments)) is not None:
        found["stream_weight"], found["stream_bias"] = (tensor.to(dtype) for tensor in stream)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise DataError(f"the first values of the code do not fit into {dtype}", hint="set codec_encoding=bf16")
    return found


def _share_kept(directions: Tensor, covariance: Tensor) -> float:
    """Share of the variance in the span of ``directions`` [r, d]."""
    total = float(covariance.trace())
    span = torch.linalg.qr(directions.T)[0]
    return float((span.T @ covariance @ span).trace()) / total if total > 0 else 1.0


def _fit_stream(v: Tensor, moments: Moments) -> tuple[Tensor, Tensor] | None:
    """Least squares for the stream of a pre-norm block, h ≈ R·z + c with z = V·a: R = Cov(h, z)·Cov(z)⁻¹."""
    if moments.cross is None or moments.stream is None:
        return None
    h = moments.stream / moments.tokens
    cross = (moments.cross / moments.tokens - torch.outer(h, moments.mean)) @ v.T
    r = cross @ torch.linalg.pinv(v @ moments.covariance @ v.T, hermitian=True)
    return r, h - r @ (v @ moments.mean)


def _sentence_directions(moments: Moments, rank: int, q: int) -> Tensor:
    """Q [q, d]: the principal directions that come next after those the tokens' codes carry."""
    directions = principal_directions(moments.covariance)
    start = min(rank, len(directions) - q)
    return directions[start : start + q]


@contextmanager
def _stream(front: Front) -> Iterator[Callable[[], Tensor | None]]:
    """The residual stream of the opened block at its last pass, where it is not the features themselves."""
    family = ARCHITECTURES[front.plan.family]
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
