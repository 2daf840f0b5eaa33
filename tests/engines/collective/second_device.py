"""A second device without hardware: tensors that report ``lazy`` and refuse to be mixed with those of the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class FarTensor(Tensor):
    """Keeps its values in a CPU tensor, which only copies between the devices may read or write.

    ``lazy`` is a device type for which torch looks for no hardware.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> FarTensor:
        made: FarTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="lazy",
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        inner = tree_map(lambda each: each.values if isinstance(each, FarTensor) else each, (args, given))
        if func is torch.ops.aten.copy_.default:
            func(*inner[0], **inner[1])
            return args[0]
        if func is torch.ops.aten._to_copy.default:
            to = torch.device(given.get("device", "lazy")).type
            found = func(*inner[0], **{**inner[1], "device": "cpu"})
            return found if to == "cpu" else FarTensor(found)
        near = [each for each in args if isinstance(each, Tensor) and not isinstance(each, FarTensor)]
        if near:
            raise RuntimeError(f"{func}: expected all tensors on the same device, got lazy and {near[0].device}")
        return tree_map(lambda each: FarTensor(each) if isinstance(each, Tensor) else each, func(*inner[0], **inner[1]))


def far(values: Tensor) -> Tensor:
    """Return a tensor on the second device."""
    return FarTensor(values.clone())
