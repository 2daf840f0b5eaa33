"""Calibration: choose the directions of the code by PCA of the activations of local samples.

Runs on the edge; only the tensors of :class:`~.codec_init.CodecInit` leave it. Equations:
``docs/methods/split_fine_tuning.md``, section 5.
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
from ...engines.split.factors import principal_axes, principal_directions
from .codec_init import CodecInit
from .front import Front, OpenedBlock
from .plan import SplitPlan


@dataclass(slots=True)
class Moments:
    """Sums over the tokens of the samples, padding excluded; fp64, on the CPU: not every device has fp64.

    Attributes
    ----------
    tokens : int
    total : Tensor [w]
        Sum of the features a.
    square : Tensor [w, w]
        Sum of a·aᵀ.
    stream : Tensor [d] or None
        Sum of the residual stream h, if it differs from a (pre-norm models).
    cross : Tensor [d, w] or None
        Sum of h·aᵀ.
    """

    tokens: int
    total: Tensor
    square: Tensor
    stream: Tensor | None = None
    cross: Tensor | None = None

    def add(self, a: Tensor, h: Tensor | None) -> None:
        """Add features ``a`` [M, w] and, for pre-norm models, residual stream values ``h`` [M, d]."""
        a = a.cpu().double()
        self.tokens += len(a)
        self.total += a.sum(dim=0)
        self.square += a.T @ a
        if h is not None:
            h = h.cpu().double()
            stream, cross = h.sum(dim=0), h.T @ a
            self.stream = stream if self.stream is None else self.stream + stream
            self.cross = cross if self.cross is None else self.cross + cross

    @property
    def mean(self) -> Tensor:
        """Mean of the features, [w]."""
        return self.total / self.tokens

    @property
    def covariance(self) -> Tensor:
        """Covariance of the features, [w, w]."""
        return self.square / self.tokens - torch.outer(self.mean, self.mean)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Result of a calibration.

    Attributes
    ----------
    init : CodecInit
        Initial values of the codec. The front has been initialized with them; trunk and other edges must be too.
    kept : float
        Fraction of the features' variance in the span of the code's directions, 0 to 1.
    tokens : int
        Number of tokens in the samples.
    """

    init: CodecInit
    kept: float
    tokens: int


def calibrate(front: Front, batches: Iterable[Mapping[str, Tensor]], dtype: torch.dtype = torch.float32) -> Calibration:
    """Calibrate a front on local samples: :func:`collect_moments`, then :func:`fit_codec`.

    Parameters
    ----------
    front : Front
        Changed in place: the codec (``init=pca`` only) and :attr:`~.front.Front.statistics`.
    batches : iterable of mappings
        ``input_ids``, ``attention_mask`` and optionally ``token_type_ids``, each [B, T] on the front's device; 256 to
        1,024 samples are enough.
    dtype : torch.dtype
        Type in which matrices are sent; all sides use the values rounded to it.

    Raises
    ------
    DataError
        There are no samples, or fewer tokens than the width of the code.
    """
    return fit_codec(front, collect_moments(front, batches), dtype)


@torch.no_grad()
def collect_moments(front: Front, batches: Iterable[Mapping[str, Tensor]]) -> Moments:
    """Sum the moments of a front's features over ``batches``, in evaluation mode."""
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
                    moments = Moments(0, torch.zeros(w, dtype=torch.float64), torch.zeros(w, w, dtype=torch.float64))
                h = stream()
                moments.add(a[keep], None if h is None else h[keep])
    finally:
        front.train(was_training)
    # r directions need at least r tokens; without a codec, only channel moments are estimated.
    needed = front.plan.width if front.codec is not None else 1
    if moments is None or moments.tokens < needed:
        seen = 0 if moments is None else moments.tokens
        raise DataError(
            f"calibration has {seen} tokens for a code of width {front.plan.width}",
            hint="use more local samples (calibration_samples), or a smaller rank",
        )
    return moments


@torch.no_grad()
def fit_codec(front: Front, moments: Moments, dtype: torch.dtype = torch.float32) -> Calibration:
    """Compute a codec's initial values from moments and apply them to the front; ``dtype`` as in :func:`calibrate`."""
    plan, codec = front.plan, front.codec
    found: dict[str, Tensor] = {}
    weight, kept = torch.eye(plan.width, dtype=torch.float64), 1.0
    if codec is not None:
        v = codec.directions.weight.cpu().double()
        weight = codec.scales.weight.cpu().double() @ v
        if plan.options.init == "pca":
            found = {name: tensor.float() for name, tensor in _principal(plan, moments, dtype).items()}
            v = weight = found["directions"].double()
        kept = _share_kept(v, moments.covariance)
    mean, variance = weight @ moments.mean, (weight @ moments.covariance @ weight.T).diagonal().clamp(min=0)
    init = CodecInit(mean.float(), variance.float(), **found)
    front.initialize_codec(init)
    return Calibration(init, kept, moments.tokens)


def _principal(plan: SplitPlan, moments: Moments, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute the principal directions, round them to ``dtype``, and fit the reconstruction to the rounded ones."""
    v = principal_axes(moments.covariance, plan.width).to(dtype)
    found = {"directions": v, "mean": moments.mean.to(dtype)}
    if (q := plan.options.sentence_vector) > 0:
        found["sentence"] = _sentence_directions(moments, plan.width, q).to(dtype)
    if (stream := _fit_stream(v.double(), moments)) is not None:
        found["stream_weight"], found["stream_bias"] = (tensor.to(dtype) for tensor in stream)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise DataError(f"the codec's initial values exceed the range of {dtype}", hint="set codec_encoding=bf16")
    return found


def _share_kept(directions: Tensor, covariance: Tensor) -> float:
    """Return the fraction of the variance in the span of ``directions`` [r, d]."""
    total = float(covariance.trace())
    span = torch.linalg.qr(directions.T)[0]
    return float((span.T @ covariance @ span).trace()) / total if total > 0 else 1.0


def _fit_stream(v: Tensor, moments: Moments) -> tuple[Tensor, Tensor] | None:
    """Fit the stream of a pre-norm block by least squares, h ≈ R·z + c with z = V·a: R = Cov(h, z)·Cov(z)⁻¹."""
    if moments.cross is None or moments.stream is None:
        return None
    h = moments.stream / moments.tokens
    cross = (moments.cross / moments.tokens - torch.outer(h, moments.mean)) @ v.T
    r = cross @ torch.linalg.pinv(v @ moments.covariance @ v.T, hermitian=True)
    return r, h - r @ (v @ moments.mean)


def _sentence_directions(moments: Moments, rank: int, q: int) -> Tensor:
    """Return Q [q, d]: the q principal directions after the first ``rank``."""
    directions = principal_directions(moments.covariance)
    first = min(rank, len(directions) - q)
    return directions[first : first + q]


@contextmanager
def _stream(front: Front) -> Iterator[Callable[[], Tensor | None]]:
    """Yield a function that returns the residual stream of the last forward pass; None if the stream is the features.

    The stream is the input of the norm before the feed-forward network of the opened block.
    """
    architecture = ARCHITECTURES[front.plan.family]
    opened = [m for m in front.model.modules() if isinstance(m, OpenedBlock)]
    seen: list[Tensor] = []
    if not architecture.stream_norm or not opened:
        yield lambda: None
        return

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[:] = [args[0]]

    handle = opened[0].block.get_submodule(architecture.stream_norm).register_forward_pre_hook(keep)
    try:
        yield lambda: seen[0]
    finally:
        handle.remove()
