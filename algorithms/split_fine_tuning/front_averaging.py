"""Averaging of the fronts of several edges.

Edges send the differences of their weights from the last common weights, not the weights: in 16 bits, rounding the
weights themselves would lose small steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...core.errors import RunFailedError, StorageError, WireError
from ...core.message import Array, Message, Tensor
from ...engines.split.wire_codec import read_weights, shapes_of, weight_tensors
from .protocol import CLOUD

_PREFIX = "common."


class FrontAverage:
    """The front of one edge, on its device, and the last weights common to all edges, on the CPU.

    Parameters
    ----------
    module : nn.Module
        The front; its trainable parameters must be equal on all edges at construction.
    encoding : {"raw", "fp16", "bf16"}
        Encoding of the differences.
    """

    def __init__(self, module: nn.Module, encoding: str) -> None:
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._encoding = encoding
        self._common = {n: p.detach().cpu().clone() for n, p in self._parameters.items()}

    def differences(self) -> dict[str, Tensor]:
        """Return the difference of each parameter from the common one, as wire tensors."""
        differences = {n: p.detach().cpu() - self._common[n] for n, p in self._parameters.items()}
        return weight_tensors(differences, self._encoding)

    @torch.no_grad()
    def apply_mean(self, message: Message) -> None:
        """Set the parameters, and the common weights, to the common weights plus the mean difference of all edges.

        Raises
        ------
        WireError
            The message is not a mean of these parameters.
        """
        for name, mean in read_weights(message, shapes_of(self._parameters), CLOUD).items():
            self._common[name] += mean
            self._parameters[name].copy_(self._common[name])

    def to_arrays(self) -> dict[str, Array]:
        """Return the common weights as the arrays of a checkpoint."""
        return {_PREFIX + n: t.numpy().copy() for n, t in self._common.items()}

    def from_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Restore the common weights from :meth:`to_arrays`.

        Raises
        ------
        StorageError
            The checkpoint lacks a parameter, or its shape differs.
        """
        for name, common in self._common.items():
            saved = arrays.get(_PREFIX + name)
            if saved is None or saved.shape != tuple(common.shape):
                raise StorageError(
                    f"the checkpoint lacks the common weight '{name}'",
                    hint="start a new run, or resume with the run's original configuration",
                )
            common.copy_(torch.from_numpy(np.array(saved)))


def weighted_mean(contributions: Iterable[tuple[str, float, Message]]) -> dict[str, torch.Tensor]:
    """Return the weighted mean of the edges' tensors as float32 on the CPU, summed in fp64 in the order given.

    Parameters
    ----------
    contributions : iterable of (node, weight, message)
        The weights sum to one.

    Raises
    ------
    WireError
        An edge's names or shapes differ from those of the previous edges.
    RunFailedError
        A value is not finite.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    for node, weight, message in contributions:
        arrays = {n: t.array for n, t in message.tensors.items()}
        if sums and {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in sums.items()}:
            raise WireError(f"edge '{node}' sent weights whose names or shapes differ from those of other edges")
        if not all(np.isfinite(a).all() for a in arrays.values()):
            raise RunFailedError(
                f"edge '{node}' sent weights that are not finite", hint="lower learning_rate or codec_lr_factor"
            )
        for name, array in arrays.items():
            term = array.astype(np.float64) * weight
            sums[name] = sums[name] + term if name in sums else term
    return {n: torch.from_numpy(a.astype(np.float32)) for n, a in sums.items()}
