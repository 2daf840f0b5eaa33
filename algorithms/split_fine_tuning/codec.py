"""Encoder on the edge and decoder in the cloud, per token and optionally per sentence.

Equations: ``docs/methods/split_fine_tuning.md``, sections 3 (factors), 4 (residual) and 6 (decoder network, sentence
vector).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...engines.split.codec import set_values
from ...engines.split.factors import Basis
from .heads import masked_mean
from .plan import SplitPlan


class Encoder(nn.Module):
    """Codes z = S·V·a per token and, optionally, q numbers Q·mean(a) per sentence. No biases.

    ``directions`` is V [r, d]; ``scales`` is S [r, r], trained as a dense matrix as in the authors' code; ``sentence``
    is Q [q, d].
    """

    def __init__(self, plan: SplitPlan) -> None:
        super().__init__()
        self.directions = nn.Linear(plan.hidden, plan.width, bias=False)
        self.scales = nn.Linear(plan.width, plan.width, bias=False)
        q = plan.options.sentence_vector
        self.sentence = nn.Linear(plan.hidden, q, bias=False) if q else None

    def forward(self, a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return codes [B, T, r] and sentence vectors [B, q] or None, of ``a`` [B, T, d] with ``mask`` [B, T]."""
        z: Tensor = self.scales(self.directions(a))
        return z, None if self.sentence is None else self.sentence(masked_mean(a, mask))

    def initialize(self, basis: Basis, sentence: Tensor | None) -> None:
        """Set V and S from ``basis`` and Q from ``sentence`` [q, d]."""
        set_values(self.directions.weight, basis.v)
        set_values(self.scales.weight, basis.s)
        if self.sentence is not None and sentence is not None:
            set_values(self.sentence.weight, sentence)


class Decoder(nn.Module):
    """Reconstructs the output of W1, [B, T, f], and the residual, [B, T, d], from codes.

    ``decoder=linear``: ``expand`` is U with its bias and ``residual`` is R with its bias c; the terms of the sentence
    vector are zero at first. ``decoder=mlp``: the input of W1 is reconstructed as R·z + c plus a network of the code
    whose output is zero at first, and the trunk applies the whole W1 to it. Both are equal at initialization.
    """

    def __init__(self, plan: SplitPlan) -> None:
        super().__init__()
        o, r, d, q = plan.options, plan.width, plan.hidden, plan.options.sentence_vector
        self.keep_residual = o.residual == "project" or o.how == "codec"
        rebuild = self.keep_residual or o.decoder == "mlp"
        linear_ffn = o.how == "ffn_svd" and o.decoder == "linear"
        self.expand = nn.Linear(r, plan.ffn) if linear_ffn else None
        self.residual = nn.Linear(r, d) if rebuild else None
        self.sentence_expand = nn.Linear(q, plan.ffn, bias=False) if q and linear_ffn else None
        self.sentence_residual = nn.Linear(q, d, bias=False) if q and rebuild else None
        self.network = DecoderNetwork(r, q, d, o.seed) if o.decoder == "mlp" else None
        for module in (self.sentence_expand, self.sentence_residual):
            if module is not None and not module.weight.is_meta:
                nn.init.zeros_(module.weight)

    def forward(self, z: Tensor, sentence: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return ``(u, rebuilt)``: the output of W1 [B, T, f] if it is computed from the code, and R·z + c + …."""
        u = None if self.expand is None else self.expand(z)
        rebuilt = None if self.residual is None else self.residual(z)
        if sentence is not None:
            if self.sentence_expand is not None:
                u = u + self.sentence_expand(sentence).unsqueeze(1)
            if self.sentence_residual is not None:
                rebuilt = rebuilt + self.sentence_residual(sentence).unsqueeze(1)
        if self.network is not None and rebuilt is not None:
            rebuilt = rebuilt + self.network(z, sentence)
        return u, rebuilt

    def initialize(
        self, basis: Basis, first: tuple[Tensor, Tensor] | None, stream: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Set R and c from ``stream`` (else ``basis``), and U and its bias from ``basis`` and ``first`` = (W1, b1)."""
        if self.residual is not None:
            r, c = stream or (basis.r, basis.c)
            set_values(self.residual.weight, r)
            set_values(self.residual.bias, c)
        if self.expand is not None and first is not None:
            u, bias = basis.fold_into(*first)
            set_values(self.expand.weight, u)
            set_values(self.expand.bias, bias)


class DecoderNetwork(nn.Module):
    """MLP of the standardized code with a hidden layer of width 2d; its output is zero at initialization.

    ``mean`` and ``deviation`` of the code's channels come from calibration, so that channels have equal scales.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, r: int, q: int, d: int, seed: int) -> None:
        super().__init__()
        width = r + q
        self.register_buffer("mean", torch.zeros(r))
        self.register_buffer("deviation", torch.ones(r))
        self.inner = nn.Linear(width, 2 * d)
        self.outer = nn.Linear(2 * d, d)
        if not self.inner.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.inner.weight.copy_(torch.randn(2 * d, width, generator=generator) / width**0.5)
                self.inner.bias.zero_()
                self.outer.weight.zero_()
                self.outer.bias.zero_()

    def forward(self, z: Tensor, sentence: Tensor | None) -> Tensor:
        """Map codes [B, T, r] and sentence vectors [B, q] to [B, T, d]."""
        x = (z - self.mean) / self.deviation
        if sentence is not None:
            x = torch.cat([x, sentence.unsqueeze(1).expand(-1, z.shape[1], -1)], dim=-1)
        y: Tensor = self.outer(nn.functional.gelu(self.inner(x)))
        return y

    def standardize(self, mean: Tensor, variance: Tensor) -> None:
        """Set mean and standard deviation from the moments [r] of the code's channels."""
        deviation = variance.sqrt()
        # Bound the scale of channels that hardly vary in the calibration samples: they may vary in training.
        deviation = deviation.clamp(min=max(1e-3 * float(deviation.max()), 1e-12))
        set_values(self.mean, mean)
        set_values(self.deviation, deviation)


class FullProjection(nn.Module):
    """Residual of an uncompressed ``ffn`` cut, reconstructed from the output u of W1: R·u + c, R [d, f]."""

    def __init__(self, plan: SplitPlan) -> None:
        super().__init__()
        self.residual = nn.Linear(plan.ffn, plan.hidden)

    def forward(self, u: Tensor, sentence: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``(u, rebuilt)``, as :class:`Decoder` does."""
        return u, self.residual(u)

    def initialize(self, weight: Tensor, bias: Tensor) -> None:
        """Set R to the pseudo-inverse of W1 and c to −R·b1: exact if W1 has full column rank."""
        inverse = torch.linalg.pinv(weight.detach().cpu().double())
        set_values(self.residual.weight, inverse)
        set_values(self.residual.bias, -(inverse @ bias.detach().cpu().double()))
