"""The layers that K-FAC preconditions, and their gradients as matrices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...models.wrappers import plain_name


@dataclass(frozen=True)
class Layer:
    """A Linear or Conv2d: one block of the Fisher matrix.

    Parameters
    ----------
    name : str
        As in ``named_modules()`` of the model without wrappers.
    module : Linear or Conv2d
    index : int
        Position among the model's layers.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    index: int

    @property
    def a(self) -> int:
        """Side of factor A: inputs per output element, plus one for a bias."""
        return self.module.weight[0].numel() + (self.module.bias is not None)

    @property
    def g(self) -> int:
        """Side of factor G: outputs or output channels."""
        return int(self.module.weight.shape[0])

    @property
    def gradient_elements(self) -> int:
        """Elements of the gradient matrix, W_l = a g."""
        return self.a * self.g

    @property
    def factor_elements(self) -> int:
        """Elements of both factors, F_l = a² + g²."""
        return self.a * self.a + self.g * self.g

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The weight and, if there is one, the bias."""
        return tuple(self.module.parameters(recurse=False))

    def gradient(self) -> Tensor:
        """Return the gradient as a new matrix (g, a) with the bias in the last column; zeros for missing gradients."""
        columns = [_gradient(p).reshape(self.g, -1) for p in self.parameters]
        return torch.cat(columns, dim=1)

    def set_gradient(self, matrix: Tensor) -> None:
        """Overwrite the parameters' gradients with a matrix (g, a)."""
        first = 0
        for parameter in self.parameters:
            width = parameter.numel() // self.g
            part = matrix[:, first : first + width].reshape(parameter.shape)
            if parameter.grad is None:
                parameter.grad = part.to(parameter.dtype, copy=True)
            else:
                parameter.grad.copy_(part)
            first += width


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def find_layers(
    model: nn.Module, skip: Iterable[str] = (), exclude_out_features: int | None = None
) -> tuple[list[Layer], dict[str, str]]:
    """Find the layers of a model that K-FAC preconditions, in module order.

    Parameters
    ----------
    skip : iterable of str
        Regular expressions; a module is skipped if one matches its whole name or the name of its class.
    exclude_out_features : int, optional
        Skip Linear layers with this many outputs, such as the projection to a vocabulary.

    Returns
    -------
    layers : list of Layer
    skipped : dict of str
        The other modules with parameters of their own: name and the reason why they are not preconditioned.

    Raises
    ------
    ConfigError
        A pattern of ``skip`` is invalid or matches no module.
    """
    patterns = _compile(skip)
    unused = set(patterns)
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    uncalled = _never_called(model)
    for wrapped_name, module in model.named_modules():
        name = plain_name(model, wrapped_name)
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        matching = {p for p in patterns if p.fullmatch(name) or p.fullmatch(type(module).__name__)}
        unused -= matching
        reason = (
            "matches skip_layers"
            if matching
            else uncalled.get(id(module)) or _why_skipped(module, exclude_out_features)
        )
        if reason:
            skipped[name] = reason
        else:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            layers.append(Layer(name, module, len(layers)))
    if unused:
        shown = ", ".join(sorted(p.pattern for p in unused))
        raise ConfigError(f"skip_layers: no module matches {shown}", hint="give names of modules, or of their classes")
    return layers, skipped


def _compile(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(p) for p in patterns]
    except re.error as error:
        raise ConfigError(f"skip_layers: '{error.pattern!s}' is not a regular expression: {error}") from error


def _never_called(model: nn.Module) -> dict[int, str]:
    """Return modules whose weights are used without calling the module, with the reason."""
    reason = "MultiheadAttention uses its weights without calling it"
    return {id(m.out_proj): reason for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def _why_skipped(module: nn.Module, exclude_out_features: int | None) -> str | None:
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"K-FAC supports Linear and Conv2d, not {type(module).__name__}"
    if not module.weight.requires_grad:
        return "its weight is frozen"
    if module.bias is not None and not module.bias.requires_grad:
        return "its bias is frozen"
    if isinstance(module, nn.Conv2d):
        return None if module.groups == 1 else f"a grouped convolution ({module.groups} groups)"
    if exclude_out_features is not None and module.out_features == exclude_out_features:
        return f"exclude_out_features={exclude_out_features}"
    return None
