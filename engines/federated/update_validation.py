"""A client's update as a summand that is safe to add: nothing that is not finite, nothing that drowns all others."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.message import Array
from .messages import UpdateError
from .methods import FLOATS, FedAvg, FederatedMethod, Scaffold, Update
from .tree import Part

#: Of these each array is the update's array of that name times a number from 1 on, so that it is finite only where the
#: update is: both are looked at in one pass. All others see only updates that were looked at before.
_PLAIN: tuple[Any, ...] = (FedAvg.contribution, Scaffold.contribution)


def contributed(method: FederatedMethod, seen: Part, update: Update, largest_norm: float = 0.0) -> Part:
    """The summand of an update.

    Parameters
    ----------
    method : Method
    seen : dict of arrays
        What the client began from.
    update : Update
        Of the right names, shapes and types.
    largest_norm : float
        Euclidean distance that ``floats`` may have moved; 0 = any.

    Raises
    ------
    UpdateError
        The update is not finite, or not any more times its weight, or it moved further.
    """
    if not _is_plain(method):
        check_finite(update.tensors)
    with np.errstate(over="ignore", invalid="ignore"):
        part = method.contribution(seen, update)
    for name, array in part.items():
        if not is_finite(array):
            check_finite(update.tensors)
            raise UpdateError(f"its '{name}' times its weight are too large to be added")
    if largest_norm:
        moved = float(np.linalg.norm(np.subtract(update.tensors[FLOATS], seen[FLOATS], dtype=np.float64)))
        if moved > largest_norm:
            raise UpdateError(f"it moved the model by {moved:.3g}, more than the {largest_norm:g} that are allowed")
    return part


def check_finite(tensors: Part) -> None:
    """Raise :class:`UpdateError` where a number is infinite or none."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not is_finite(array):
            raise UpdateError(f"its '{name}' are not finite")


def _is_plain(method: FederatedMethod) -> bool:
    """Whether the arithmetic is ours throughout: whoever derives a method may redefine any part of it."""
    kind: Any = type(method)
    return getattr(kind, "contribution", None) in _PLAIN and kind.summand is FedAvg.summand


def is_finite(array: Array) -> bool:
    """A finite sum has finite summands; only where it is not are they looked at one by one.

    Of float32 the squares are added up, which is three times as fast as the numbers themselves.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype == np.float32 and array.flags.c_contiguous:
            flat = array.reshape(-1)
            total = np.dot(flat, flat)
        else:
            total = np.add.reduce(array, axis=None)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())
