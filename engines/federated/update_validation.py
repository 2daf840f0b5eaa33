"""Turns a client's update into a summand, rejecting non-finite values and excessive norms."""

from __future__ import annotations

import numpy as np

from ...core.message import Array
from .messages import UpdateError
from .methods import FLOATS, FederatedMethod, Update
from .tree import NamedArrays


def validated_contribution(
    method: FederatedMethod, received: NamedArrays, update: Update, largest_norm: float = 0.0
) -> NamedArrays:
    """Return the summand of an update.

    Parameters
    ----------
    method : FederatedMethod
    received : dict of arrays
        The state that the client started from.
    update : Update
        With the expected names, shapes and dtypes.
    largest_norm : float
        Largest allowed Euclidean distance between ``floats`` before and after training; 0 = no limit.

    Raises
    ------
    UpdateError
        The update has non-finite values, overflows when weighted, or exceeds ``largest_norm``.
    """
    if not getattr(method, "contribution_scales", False):
        check_finite(update.tensors)
    with np.errstate(over="ignore", invalid="ignore"):
        part = method.contribution(received, update)
    for name, array in part.items():
        if not is_finite(array):
            check_finite(update.tensors)
            raise UpdateError(f"'{name}' overflows when multiplied by its weight")
    if largest_norm:
        moved = float(np.linalg.norm(np.subtract(update.tensors[FLOATS], received[FLOATS], dtype=np.float64)))
        if moved > largest_norm:
            raise UpdateError(f"the update's norm {moved:.3g} exceeds the limit {largest_norm:g} (largest_norm)")
    return part


def check_finite(tensors: NamedArrays) -> None:
    """Raise :class:`UpdateError` if a value is infinite or NaN."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not is_finite(array):
            raise UpdateError(f"'{name}' has non-finite values")


def is_finite(array: Array) -> bool:
    """Return whether all values are finite.

    A finite sum has finite summands, so single values are checked only if the sum is not finite. For float32, the
    squares are summed, which is three times as fast.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype == np.float32 and array.flags.c_contiguous:
            flat = array.reshape(-1)
            total = np.dot(flat, flat)
        else:
            total = np.add.reduce(array, axis=None)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())
