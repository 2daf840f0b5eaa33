"""Initial values of a codec: the result of calibration, and the only part of it that leaves the edge.

With it and the pre-trained model, the cloud computes U = W1·R and other edges initialize their encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...core.errors import RefusedError
from ...engines.split.architectures import ARCHITECTURES
from ...engines.split.factors import Basis, basis_of
from .plan import SplitPlan


@dataclass(frozen=True, slots=True)
class CodecInit:
    """Initial values of a codec; None where the plan does not need them.

    Attributes
    ----------
    code_mean, code_variance : Tensor [w]
        Mean and variance of each code channel over the calibration samples.
    directions : Tensor [r, d] or None
        V; with ``init=pca`` only.
    mean : Tensor [d] or None
        Mean of the features; the offset c of the reconstruction follows from it.
    sentence : Tensor [q, d] or None
        Q, the directions of the sentence vector.
    stream_weight, stream_bias : Tensor [d, r], [d] or None
        R and c of the residual stream, if it differs from the features (pre-norm models).
    """

    code_mean: Tensor
    code_variance: Tensor
    directions: Tensor | None = None
    mean: Tensor | None = None
    sentence: Tensor | None = None
    stream_weight: Tensor | None = None
    stream_bias: Tensor | None = None

    @property
    def basis(self) -> Basis | None:
        """Basis of the directions; None without directions."""
        return None if self.directions is None or self.mean is None else basis_of(self.directions, self.mean)

    @property
    def stream(self) -> tuple[Tensor, Tensor] | None:
        """R and c of the residual stream; None if the stream is the features."""
        if self.stream_weight is None or self.stream_bias is None:
            return None
        return self.stream_weight, self.stream_bias

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], plan: SplitPlan) -> CodecInit:
        """Check a peer's tensors against the plan.

        Raises
        ------
        RefusedError
            A name is missing or unknown, a shape differs from the plan's, or a value is not finite.
        """
        expected = init_shapes(plan)
        if tensors.keys() != expected.keys():
            raise RefusedError(
                f"the codec has the tensors {', '.join(sorted(tensors))}, expected {', '.join(sorted(expected))}",
                hint="use the same split plan on both sides",
            )
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != expected[name]:
                raise RefusedError(
                    f"the codec's '{name}' has shape {tuple(tensor.shape)}, expected {expected[name]}",
                    hint="use the same split plan on both sides",
                )
            if not tensor.is_floating_point():
                raise RefusedError(f"the codec's '{name}' has dtype {tensor.dtype}", hint="send floating-point numbers")
            if not bool(torch.isfinite(tensor).all()):
                raise RefusedError(f"the codec's '{name}' has values that are not finite", hint="calibrate again")
        return cls(**tensors)


def init_shapes(plan: SplitPlan) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the initial values of a plan's codec."""
    w, d, o = plan.width, plan.hidden, plan.options
    shapes: dict[str, tuple[int, ...]] = {"code_mean": (w,), "code_variance": (w,)}
    if not o.compressed or o.init != "pca":
        return shapes
    shapes |= {"directions": (w, d), "mean": (d,)}
    if o.sentence_vector:
        shapes["sentence"] = (o.sentence_vector, d)
    if ARCHITECTURES[plan.family].stream_norm and o.how == "ffn_svd":
        shapes |= {"stream_weight": (d, w), "stream_bias": (d,)}
    return shapes
