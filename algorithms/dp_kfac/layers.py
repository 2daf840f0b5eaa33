"""Which modules K-FAC preconditions, and their gradients as matrices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """A Linear or Conv2d with one block of the Fisher matrix.

    Parameters
    ----------
    name : str
        As in ``model.named_modules()``.
    module : Linear or Conv2d
    index : int
        Position among the layers of the model.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    index: int

    @property
    def a(self) -> int:
        """Side of factor A: inputs of one output number, and one more for the bias."""
        return self.module.weight[0].numel() + (self.module.bias is not None)

    @property
    def g(self) -> int:
        """Side of factor G: outputs."""
        return int(self.module.weight.shape[0])

    @property
    def weights(self) -> int:
        """Numbers of the gradient matrix, W_l = a g."""
        return self.a * self.g

    @property
    def factors(self) -> int:
        """Numbers of both factors, F_l = a² + g²."""
        return self.a * self.a + self.g * self.g

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight and, if there is one, bias."""
        return tuple(self.module.parameters(recurse=False))

    def gradient(self) -> Tensor:
        """The gradient as a new matrix (g, a), the bias' in the last column; zeros where there is none yet."""
        columns = [_gradient(p).reshape(self.g, -1) for p in self.parameters]
        return torch.cat(columns, dim=1)

    def write(self, matrix: Tensor) -> None:
        """Put a matrix (g, a) into the parameters' gradients."""
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
    """The layers of a model, in the order of its modules, and why others have none.

    Parameters
    ----------
    skip : iterable of str
        Regular expressions that match whole names of modules, or names of classes.
    exclude_out_features : int, optional
        A Linear with so many outputs is left out: the layer before the softmax over a vocabulary.

    Returns
    -------
    layers : list of Layer
    plain : dict of str
        Name of each other module that has parameters of its own, with the reason; its gradient stays as it is.

    Raises
    ------
    ConfigError
        A pattern of ``skip`` matches nothing, or is none.
    """
    patterns = _compiled(skip)
    unused = set(patterns)
    layers: list[Layer] = []
    plain: dict[str, str] = {}
    never = _never_called(model)
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        matching = {p for p in patterns if p.fullmatch(name) or p.fullmatch(type(module).__name__)}
        unused -= matching
        reason = "skipped by name" if matching else never.get(id(module)) or _why_plain(module, exclude_out_features)
        if reason:
            plain[name] = reason
        else:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            layers.append(Layer(name, module, len(layers)))
    if unused:
        shown = ", ".join(sorted(p.pattern for p in unused))
        raise ConfigError(
            f"no module is called {shown}", hint="skip_layers takes names of the model's modules or classes"
        )
    return layers, plain


def _compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(p) for p in patterns]
    except re.error as error:
        raise ConfigError(f"skip_layers: '{error.pattern!s}' is no regular expression: {error}") from error


def _never_called(model: nn.Module) -> dict[int, str]:
    """Modules whose weights others use without calling them."""
    reason = "MultiheadAttention reads its weights without calling it"
    return {id(m.out_proj): reason for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def _why_plain(module: nn.Module, exclude_out_features: int | None) -> str | None:
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"K-FAC knows Linear and Conv2d, not {type(module).__name__}"
    if not module.weight.requires_grad:
        return "frozen"
    if module.bias is not None and not module.bias.requires_grad:
        return "its bias is frozen"
    if isinstance(module, nn.Conv2d):
        return None if module.groups == 1 else f"a convolution of {module.groups} groups"
    if exclude_out_features is not None and module.out_features == exclude_out_features:
        return f"it has {exclude_out_features} outputs"
    return None
