"""Everything that farshore uses of torch's private modules; no other file imports them.

``tests/models/test_torch_internals.py`` says what each is relied on for, and fails first where a release of torch
changes one. The names of ``torch.distributed`` exist only in builds that have it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
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
    from torch.distributed import distributed_c10d as _c10d

    _c10d_native: Any = torch._C._distributed_c10d
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
    "after_backward",
    "backward_keeps_graph",
    "backward_will_run",
    "compiled_module",
    "gloo_options",
    "own_process_groups",
    "rank_is_thread",
    "scale_each",
    "subtracted_each",
]


def backward_will_run(node: Any) -> bool:
    """Whether the backward pass in progress will execute a node of the graph; call it inside ``backward`` only."""
    return bool(torch._C._will_engine_execute_node(node))


def backward_keeps_graph() -> bool:
    """Whether the backward pass in progress was asked to retain the graph; call it inside ``backward`` only."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def after_backward(callback: Callable[[], None]) -> bool:
    """Call ``callback`` at the end of the backward pass in progress, in the order of these calls and before DDP ends.

    Returns
    -------
    bool
        False if the calling thread executes no backward pass; nothing is called then.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)
    return True


def gloo_options(host: str, timeout: Any) -> Any:
    """Options of a :class:`ProcessGroupGloo` that listens on ``host`` and waits for ``timeout`` (a timedelta)."""
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timeout
    return options


def compiled_module(module: nn.Module) -> nn.Module | None:
    """Return what ``torch.compile`` has wrapped in ``module``; None if it is no such wrapper.

    Its class cannot be imported without the compiler, which takes seconds.
    """
    return module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None


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


@dataclass(slots=True)
class _ProcessGroups:
    """The process groups of one rank: the state that torch keeps once per process, by the names it has there."""

    default_pg: Any = None
    pg_map: dict[Any, Any] = field(default_factory=dict)
    pg_names: dict[Any, Any] = field(default_factory=dict)
    pg_group_ranks: dict[Any, Any] = field(default_factory=dict)
    pg_backend_config: dict[Any, Any] = field(default_factory=dict)
    group_count: int = 0
    tags_to_pg: dict[Any, Any] = field(default_factory=dict)
    pg_to_tag: dict[Any, Any] = field(default_factory=dict)
    pg_coalesce_state: dict[Any, Any] = field(default_factory=dict)
    pg_flight_recorder_hooks: dict[Any, Any] = field(default_factory=dict)
    comms: list[Any] = field(default_factory=list)


_own_groups: ContextVar[_ProcessGroups | None] = ContextVar("process groups", default=None)


class _World:
    """Stands in for torch's ``_world``: the groups of the context's rank, or the process' own outside of ranks."""

    def __init__(self, process: Any) -> None:
        object.__setattr__(self, "process", process)

    def __getattr__(self, name: str) -> Any:
        return getattr(_own_groups.get() or self.process, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_own_groups.get() or self.process, name, value)


def rank_is_thread() -> bool:
    """Whether the calling code is a rank that shares its process with others; see :func:`own_process_groups`."""
    return _own_groups.get() is not None


_worlds_lock = threading.Lock()
_worlds_in_use = 0
_excepthook: Any = None


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Give the calling thread process groups of its own, so that threads of one process can be ranks.

    Inside, ``torch.distributed`` knows only groups that were made inside. A thread that is started with a copy of the
    context sees the same groups. CPU tensors only: backward passes run in the calling thread.
    """
    global _worlds_in_use, _excepthook
    with _worlds_lock:
        if not _worlds_in_use:
            _excepthook = sys.excepthook
            _c10d._world = _World(_c10d._world)  # type: ignore[assignment]
            # The registry of groups by name in C++: one per thread instead of one per process.
            _c10d_native._set_thread_isolation_mode(True)
        _worlds_in_use += 1
    token = _own_groups.set(_ProcessGroups())
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _own_groups.reset(token)
        with _worlds_lock:
            _worlds_in_use -= 1
            if not _worlds_in_use:
                _c10d_native._set_thread_isolation_mode(False)
                _c10d._world = _c10d._world.process  # type: ignore[attr-defined]
                sys.excepthook = _excepthook  # every group put its rank before the process' tracebacks
