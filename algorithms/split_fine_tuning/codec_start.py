"""What calibration settles, and all of it that leaves an edge: the directions of the code and a few moments.

Whoever has them and the pre-trained model computes the rest: the cloud U = W1·R, another edge its encoder.
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
class CodecStart:
    """First values of a code; None where the plan has no use for them.

    Attributes
    ----------
    code_mean, code_variance : Tensor [w]
        Moments of each code channel over the samples.
    directions : Tensor [r, d] or None
        V; only ``init=pca`` finds it in samples.
    mean : Tensor [d] or None
        Mean feature, around which the code rebuilds.
    sentence : Tensor [q, d] or None
        Q, the directions of sentence vectors.
    stream_weight, stream_bias : Tensor [d, r], [d] or None
        R and c of the residual stream, where it differs from the features (pre-norm models).
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
        """The code that the directions make."""
        return None if self.directions is None or self.mean is None else basis_of(self.directions, self.mean)

    @property
    def stream(self) -> tuple[Tensor, Tensor] | None:
        """R and c of a residual stream that is not the features."""
        if self.stream_weight is None or self.stream_bias is None:
            return None
        return self.stream_weight, self.stream_bias

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], plan: SplitPlan) -> CodecStart:
        """From a peer's tensors.

        Raises
        ------
        RefusedError
            A name is missing or unknown, a shape is not the plan's, or a value is not finite.
        """
        wanted = start_shapes(plan)
        if tensors.keys() != wanted.keys():
            raise RefusedError(
                f"the codec came with {', '.join(sorted(tensors))}, not with {', '.join(sorted(wanted))}",
                hint="use the same split plan on both ends",
            )
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != wanted[name]:
                raise RefusedError(
                    f"the codec's '{name}' is {tuple(tensor.shape)}, not {wanted[name]}",
                    hint="use the same split plan on both ends",
                )
            if not tensor.is_floating_point():
                raise RefusedError(f"the codec's '{name}' holds {tensor.dtype}", hint="send floating-point numbers")
            if not bool(torch.isfinite(tensor).all()):
                raise RefusedError(f"the codec's '{name}' holds values that are not finite", hint="calibrate again")
        return cls(**tensors)


def start_shapes(plan: SplitPlan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a plan's codec starts from."""
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
