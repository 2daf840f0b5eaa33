"""Hooks that turn a layer's inputs and output gradients into factors at once, so that neither is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from .factors import ConvScale, SeqReduction, input_factor, output_factor
from .layers import Layer


@dataclass
class Estimate:
    """The factors of one step so far: sums over the calls of a layer."""

    a: Tensor | None = None
    g: Tensor | None = None
    calls: int = 0
    passes: set[int] = field(default_factory=set)

    def add(self, a: Tensor, g: Tensor, number: int) -> None:
        """One call's factors, of the model's pass ``number``."""
        self.a = a if self.a is None else self.a.add_(a)
        self.g = g if self.g is None else self.g.add_(g)
        self.calls += 1
        self.passes.add(number)

    def mean(self, accumulation: int) -> tuple[Tensor, Tensor] | None:
        """A (a, a) and G (g, g), or None if the layer was not called.

        A layer that is called more than once in a pass (shared weights) is a convolution with as many positions: A is
        summed over them, G averaged. With accumulation each loss was divided, and so each gradient.
        """
        if self.a is None or self.g is None:
            return None
        return self.a / len(self.passes), self.g * (accumulation**2 / self.calls)


class Statistics:
    """Factors of the coming step, for some layers of a model.

    Parameters
    ----------
    model : Module
        Its forward passes are counted, to tell accumulated batches from shared layers.
    wanted : callable
        Tells, at each forward, whether a layer's factors are wanted in this step.
    sample_rows : int, optional
        Factors of so many samples of a batch only; the first ones, as batches are shuffled.
    factor_dtype : dtype, optional
        Factors are kept in it (default: float32, or the layer's own if wider).
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Callable[[Layer], bool],
        *,
        conv_scale: ConvScale = "kfc",
        seq_reduction: SeqReduction = "mean",
        sample_rows: int | None = None,
        factor_dtype: torch.dtype | None = None,
        sampled_only: bool = False,
    ) -> None:
        self._wanted = wanted
        self._scale: ConvScale = conv_scale
        self._reduction: SeqReduction = seq_reduction
        self._sample_rows = sample_rows
        self._dtype = factor_dtype
        #: Whether only a backward pass inside :meth:`sampling` counts.
        self._sampled_only = sampled_only
        self._sampling = False
        #: What gradients are divided by before they are looked at: a gradient scaler's scale.
        self.grad_scale = 1.0
        self._estimates: dict[str, Estimate] = {}
        self._handles: dict[str, RemovableHandle] = {}
        self._pass = 0
        self._counter = model.register_forward_pre_hook(self._began)

    def watch(self, layers: Iterable[Layer]) -> None:
        """Hook exactly these layers; hooks of others go."""
        keep = {layer.name: layer for layer in layers}
        for name in [name for name in self._handles if name not in keep]:
            self._handles.pop(name).remove()
        for name, layer in keep.items():
            if name not in self._handles:
                self._handles[name] = layer.module.register_forward_hook(self._hook(layer))

    @property
    def watched(self) -> set[str]:
        """Names of the layers with hooks."""
        return set(self._handles)

    def take(self, accumulation: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Factors of the layers that were called since the last time, and begin anew."""
        means = {name: estimate.mean(accumulation) for name, estimate in self._estimates.items()}
        self._estimates.clear()
        return {name: mean for name, mean in means.items() if mean is not None}

    @contextmanager
    def sampling(self) -> Any:
        """Where a backward pass is that of a sampled loss."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def close(self) -> None:
        """Remove all hooks."""
        self.watch(())
        self._counter.remove()

    def _began(self, module: nn.Module, inputs: Any) -> None:
        self._pass += 1

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # An evaluation, a frozen trunk, or the first pass of a reentrant checkpoint: nothing will come back.
            if not (module.training and output.requires_grad and self._wanted(layer)):
                return
            # Mixed precision ends here: factors are sums of squares.
            with torch.autocast(output.device.type, enabled=False):
                factor = input_factor(layer.module, self._part(layer, inputs[0]), self._scale, self._reduction)
            number = self._pass

            # A hook of the tensor, not of the module: those refuse activations that work in place. And the pair is
            # added when the gradient comes, so the second forward of an activation checkpoint counts for nothing.
            def backward(gradient: Tensor) -> None:
                if self._sampled_only == self._sampling:
                    self._add(layer, factor, gradient, number)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    @torch.no_grad()
    def _add(self, layer: Layer, a: Tensor, gradient: Tensor, number: int) -> None:
        gradient = gradient.to(a.dtype) if gradient.dtype != a.dtype else gradient
        whole = len(gradient)
        part = self._part(layer, gradient)
        # Of a mean over the whole batch: the part's own mean has larger gradients.
        g = output_factor(layer.module, part, self._scale, self._reduction)
        g *= (whole / len(part) / self.grad_scale) ** 2
        if self._dtype is not None:
            a, g = a.to(self._dtype), g.to(self._dtype)
        self._estimates.setdefault(layer.name, Estimate()).add(a, g, number)

    def _part(self, layer: Layer, values: Tensor) -> Tensor:
        batched = values.dim() > (3 if isinstance(layer.module, nn.Conv2d) else 1)
        return values[: self._sample_rows] if self._sample_rows and batched else values


def sampled_loss(logits: Tensor, seed: int) -> Tensor:
    """Mean cross-entropy of logits (N, classes) against labels drawn from their own softmax."""
    draw = torch.Generator(device=logits.device).manual_seed(seed)
    labels = torch.multinomial(logits.detach().float().softmax(dim=1), 1, generator=draw).squeeze(1)
    return functional.cross_entropy(logits.float(), labels)
