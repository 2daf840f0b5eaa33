"""Hooks that compute factors from a layer's inputs and output gradients at once, without caching either.

See ``docs/methods/dp_kfac.md``, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ...core.errors import ConfigError
from .factors import ConvScale, SeqReduction, input_factor, output_factor
from .layers import Layer

#: Distribution that a model's outputs describe: softmax over axis 1, or normal with unit variance.
Distribution: TypeAlias = Literal["classes", "normal"]


@dataclass
class FactorSums:
    """A layer's factors of one step: sums over the calls of the layer."""

    a: Tensor | None = None
    g: Tensor | None = None
    calls: int = 0
    passes: set[int] = field(default_factory=set)

    def add(self, a: Tensor, g: Tensor, pass_index: int) -> None:
        """Add the factors of one call in the forward pass ``pass_index`` of the model."""
        self.a = a if self.a is None else self.a.add_(a)
        self.g = g if self.g is None else self.g.add_(g)
        self.calls += 1
        self.passes.add(pass_index)

    def mean(self, accumulation: int) -> tuple[Tensor, Tensor] | None:
        """Return A (a, a) and G (g, g), or None if the layer was not called.

        A layer that is called several times in a pass (shared weights) is treated like a convolution with as many
        positions: A is summed over them, G averaged. With accumulation each loss, and so each gradient, was divided by
        ``accumulation``.
        """
        if self.a is None or self.g is None:
            return None
        return self.a / len(self.passes), self.g * (accumulation**2 / self.calls)


class Statistics:
    """Collects the factors of the current step for the hooked layers of a model.

    Parameters
    ----------
    model : Module
        Its forward passes are counted, to distinguish accumulated batches from shared layers.
    is_due : callable
        ``is_due(layer)``: whether the layer's factors are computed in this step; called at each forward pass.
    conv_scale, seq_reduction
        See :mod:`~farshore.algorithms.dp_kfac.factors`.
    sample_rows : int, optional
        Use only the first samples of a batch.
    factor_dtype : dtype, optional
        Default: float32, or float64 for a float64 layer.
    sampled_only : bool
        Use only backward passes inside :meth:`sampling`.

    Attributes
    ----------
    grad_scale : float
        Divisor of the gradients: the scale of a gradient scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        is_due: Callable[[Layer], bool],
        *,
        conv_scale: ConvScale = "kfc",
        seq_reduction: SeqReduction = "mean",
        sample_rows: int | None = None,
        factor_dtype: torch.dtype | None = None,
        sampled_only: bool = False,
    ) -> None:
        self._is_due = is_due
        self._scale: ConvScale = conv_scale
        self._reduction: SeqReduction = seq_reduction
        self._sample_rows = sample_rows
        self._dtype = factor_dtype
        self._sampled_only = sampled_only
        self._sampling = False
        self.grad_scale = 1.0
        self._sums: dict[str, FactorSums] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._pass_index = self._checked_pass = 0
        self._counter = model.register_forward_pre_hook(self._count_pass)

    def set_hooks(self, layers: Iterable[Layer]) -> None:
        """Hook exactly these layers; remove the hooks of all others."""
        keep = {layer.name: layer for layer in layers}
        for name in [name for name in self._handles if name not in keep]:
            self._handles.pop(name).remove()
        for name, layer in keep.items():
            if name not in self._handles:
                self._handles[name] = layer.module.register_forward_hook(self._hook(layer))

    @property
    def hooked(self) -> set[str]:
        """Names of the layers with hooks."""
        return set(self._handles)

    def check_seen(self, layers: Iterable[Layer]) -> None:
        """Check that the forward passes which gave these layers their gradients were seen.

        Raises
        ------
        ConfigError
            No pass was seen since the last check: ``torch.compile`` leaves out hooks that a model gets after its first
            call.
        """
        unseen = self._pass_index == self._checked_pass and not self._sums
        self._checked_pass = self._pass_index
        if unseen and any(p.grad is not None for layer in layers for p in layer.parameters):
            raise ConfigError(
                "DPKFAC has seen no forward pass of the model that computed these gradients",
                hint="create it before the compiled model is called, or call torch.compiler.reset() after creating it",
            )

    def collect(self, accumulation: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors of the layers that were called since the last time, and reset them."""
        means = {name: sums.mean(accumulation) for name, sums in self._sums.items()}
        self._sums.clear()
        return {name: mean for name, mean in means.items() if mean is not None}

    @contextmanager
    def sampling(self) -> Any:
        """Mark the backward passes inside as those of a sampled loss; a context manager."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def close(self) -> None:
        """Remove all hooks."""
        self.set_hooks(())
        self._counter.remove()

    def _count_pass(self, module: nn.Module, inputs: Any) -> None:
        self._pass_index += 1

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # No backward pass follows an evaluation, a frozen trunk or the first pass of a reentrant checkpoint.
            if not (module.training and output.requires_grad and self._is_due(layer)):
                return
            # Factors are sums of squares: never in half precision.
            with torch.autocast(output.device.type, enabled=False):
                factor = input_factor(layer.module, self._first_samples(layer, inputs[0]), self._scale, self._reduction)
            pass_index = self._pass_index

            # A hook of the tensor: full backward hooks of modules fail if an in-place activation follows. A and G are
            # added together here, so a forward pass without a backward pass (activation checkpoint) does not count.
            def backward(gradient: Tensor) -> None:
                if self._sampled_only == self._sampling:
                    self._add(layer, factor, gradient, pass_index)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    @torch.no_grad()
    def _add(self, layer: Layer, a: Tensor, gradient: Tensor, pass_index: int) -> None:
        gradient = gradient.to(a.dtype) if gradient.dtype != a.dtype else gradient
        batch_size = len(gradient)
        part = self._first_samples(layer, gradient)
        # The gradients are those of a mean over the whole batch; rescale them to a mean over the part.
        g = output_factor(layer.module, part, self._scale, self._reduction)
        g *= (batch_size / len(part) / self.grad_scale) ** 2
        if self._dtype is not None:
            a, g = a.to(self._dtype), g.to(self._dtype)
        self._sums.setdefault(layer.name, FactorSums()).add(a, g, pass_index)

    def _first_samples(self, layer: Layer, values: Tensor) -> Tensor:
        batched = values.dim() > (3 if isinstance(layer.module, nn.Conv2d) else 1)
        return values[: self._sample_rows] if self._sample_rows and batched else values


def sampled_loss(outputs: Tensor, seed: int, distribution: Distribution = "classes") -> Tensor:
    """Return the loss of outputs and targets that are drawn from the distribution which the outputs describe.

    Parameters
    ----------
    outputs : Tensor
        (N, classes, …) logits; or (N, …) means of normal distributions.
    distribution : {"classes", "normal"}
        ``classes``: cross-entropy, averaged over samples and positions. ``normal``: half the squared distance, averaged
        over samples.
    """
    generator = torch.Generator(device=outputs.device).manual_seed(seed)
    if distribution == "normal":
        values = outputs.float()
        noise = torch.randn(values.shape, generator=generator, device=values.device)
        # The target is the detached output plus noise: only the noise remains, with the gradient of the output.
        return 0.5 * (values - (values.detach() + noise)).square().sum() / len(values)
    logits = outputs.float() if outputs.dim() == 2 else outputs.float().movedim(1, -1).flatten(0, -2)
    labels = torch.multinomial(logits.detach().softmax(dim=1), 1, generator=generator).squeeze(1)
    return functional.cross_entropy(logits, labels)
