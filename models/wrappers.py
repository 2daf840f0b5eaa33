"""Wrapped modules under the names of the plain module: ``torch.compile``, data parallelism.

Each wrapper puts a prefix before the names of parameters and buffers, so that the same weights have other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..core.errors import ConfigError
from .torch_internals import compiled_module


def inner_name(module: nn.Module) -> str | None:
    """Return the name under which a wrapper holds the module that it wraps; None if the module is none."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "module"
    return "_orig_mod" if compiled_module(module) is not None else None


def unwrap(module: nn.Module) -> nn.Module:
    """Return the innermost module of any nesting of wrappers."""
    while (name := inner_name(module)) is not None:
        module = getattr(module, name)
    return module


def plain_name(root: nn.Module, name: str) -> str:
    """Return the name that a parameter, buffer or module of ``root`` would have without wrappers at any depth."""
    module: Any = root
    kept = []
    for part in name.split(".") if name else ():
        if not (isinstance(module, nn.Module) and inner_name(module) == part):
            kept.append(part)
        module = getattr(module, part)
    return ".".join(kept)


def plain_names(root: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return :func:`plain_name` of each name.

    Raises
    ------
    ConfigError
        Two of them would be the same.
    """
    found = {name: plain_name(root, name) for name in names}
    if len(set(found.values())) < len(found):
        raise ConfigError("the model has tensors that differ only by the prefix of a wrapper", hint="rename a module")
    return found


def aliases(root: nn.Module) -> dict[str, str]:
    """Return the names of tied tensors in ``root.state_dict()`` that are not the first of their tensor, and that one.

    Names are plain ones.
    """
    first: dict[int, str] = {}
    found = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        plain = plain_name(root, name)
        if isinstance(tensor, Tensor) and first.setdefault(id(tensor), plain) != plain:
            found[plain] = first[id(tensor)]
    return found


def first_tensor(output: Any) -> Tensor:
    """Return a model's logits: its output, the entry ``logits`` of a mapping, or the first of a tuple or list.

    Raises
    ------
    ConfigError
        The output is none of these.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        found: Tensor = output["logits"]
        return found
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    kinds = f"a mapping with {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
    raise ConfigError(
        f"the model returns {kinds}, in which there are no logits",
        hint="return a tensor, a mapping with 'logits', or a tuple whose first entry they are",
    )
