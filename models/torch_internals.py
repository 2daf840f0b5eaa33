"""Everything that farshore uses of torch's private modules; no other file imports them.

``tests/models/test_torch_internals.py`` says what each is relied on for, and fails first where a release of torch
changes one. The names of ``torch.distributed`` exist only in builds that have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase

if TYPE_CHECKING or torch.distributed.is_available():
    from torch._C._distributed_c10d import (
        AllgatherOptions,
        AllreduceCoalescedOptions,
        AllreduceOptions,
        AllToAllOptions,
        BarrierOptions,
        BroadcastOptions,
        GradBucket,
        HashStore,
        Store,
        Work,
    )
if TYPE_CHECKING or (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    from torch._C._distributed_c10d import ProcessGroupGloo

__all__ = [
    "AllToAllOptions",
    "AllgatherOptions",
    "AllreduceCoalescedOptions",
    "AllreduceOptions",
    "BarrierOptions",
    "BatchNormBase",
    "BroadcastOptions",
    "DropoutBase",
    "GradBucket",
    "HashStore",
    "NormBase",
    "ProcessGroupGloo",
    "Store",
    "Work",
    "add_each",
    "added_each",
    "backward_keeps_graph",
    "backward_will_run",
    "gloo_options",
    "scale_each",
    "subtracted_each",
]


def backward_will_run(node: Any) -> bool:
    """Whether the backward pass in progress will execute a node of the graph; call it inside ``backward`` only."""
    return bool(torch._C._will_engine_execute_node(node))


def backward_keeps_graph() -> bool:
    """Whether the backward pass in progress was asked to retain the graph; call it inside ``backward`` only."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def gloo_options(host: str, timeout: Any) -> Any:
    """Options of a :class:`ProcessGroupGloo` that listens on ``host`` and waits for ``timeout`` (a timedelta)."""
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timeout
    return options


def add_each(into: list[Tensor], other: list[Tensor], *, alpha: float = 1.0) -> None:
    """``into[i] += alpha * other[i]`` for all tensors in one call."""
    torch._foreach_add_(into, other, alpha=alpha)


def added_each(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """``first[i] + second[i]`` for all tensors in one call."""
    return list(torch._foreach_add(first, second))


def subtracted_each(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """``first[i] - second[i]`` for all tensors in one call."""
    return list(torch._foreach_sub(first, second))


def scale_each(into: list[Tensor], factor: float) -> None:
    """``into[i] *= factor`` for all tensors in one call."""
    torch._foreach_mul_(into, factor)
