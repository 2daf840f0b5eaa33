"""Fronts as messages: what edges send when their copies of the front are averaged.

What travels is how far each weight moved since all edges last had the same one: a few bits say that far better than
they say the weight itself, whose rounding would swallow small steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...core.errors import RunFailedError, StorageError, WireError
from ...core.message import Array, Message, Tensor
from ...engines.split.wire_codec import CASTS

_PREFIX = "common."


class FrontAverage:
    """One edge's front, and the weights that all edges last had in common.

    Parameters
    ----------
    module : nn.Module
        The front; its trainable parameters are equal on all edges now.
    encoding : {"raw", "fp16", "bf16"}
        How differences travel.
    """

    def __init__(self, module: nn.Module, encoding: str) -> None:
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._encoding = encoding
        self._common = {n: p.detach().clone() for n, p in self._parameters.items()}

    def moved(self) -> dict[str, Tensor]:
        """How far each parameter is from the common one."""
        arrays = {n: (p.detach() - self._common[n]).numpy() for n, p in self._parameters.items()}
        return weight_tensors(arrays, self._encoding)

    @torch.no_grad()
    def take(self, message: Message) -> None:
        """Continue from the common weights moved by the edges' mean.

        Raises
        ------
        WireError
            The message is of other parameters.
        """
        shapes = {n: tuple(p.shape) for n, p in self._parameters.items()}
        theirs = {n: t.array.shape for n, t in message.tensors.items()}
        if message.kind != "weights" or theirs != shapes:
            raise WireError(f"expected the mean of {len(shapes)} weights, got a '{message.kind}' of {len(theirs)}")
        for name, parameter in self._parameters.items():
            self._common[name] += torch.from_numpy(np.array(message.array(name), np.float32))
            parameter.copy_(self._common[name])

    def to_arrays(self) -> dict[str, Array]:
        """For a checkpoint."""
        return {_PREFIX + n: t.numpy().copy() for n, t in self._common.items()}

    def from_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Put back what :meth:`to_arrays` gave.

        Raises
        ------
        StorageError
            The checkpoint has other parameters.
        """
        for name, common in self._common.items():
            saved = arrays.get(_PREFIX + name)
            if saved is None or saved.shape != tuple(common.shape):
                raise StorageError(
                    f"the checkpoint lacks the common weight '{name}'",
                    hint="start the run anew, or resume it with the configuration it began with",
                )
            common.copy_(torch.from_numpy(np.array(saved)))


def weight_tensors(arrays: Mapping[str, Array], encoding: str) -> dict[str, Tensor]:
    """Named float32 arrays as tensors written with ``encoding`` (raw, fp16 or bf16)."""
    return {name: Tensor(array, CASTS[encoding]) for name, array in arrays.items()}


def weighted_mean(parts: Iterable[tuple[str, float, Message]]) -> dict[str, Array]:
    """Mean of what edges sent, summed in fp64 in the order given; float32.

    Parameters
    ----------
    parts : iterable of (node, weight, message)
        The weights sum to one.

    Raises
    ------
    WireError
        An edge's names or shapes differ from those of the edge before it.
    RunFailedError
        A value is not finite. Nothing of that edge is taken into the mean then.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    for node, weight, message in parts:
        arrays = {n: t.array for n, t in message.tensors.items()}
        if sums and {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in sums.items()}:
            raise WireError(f"edge '{node}' sent weights of other names or shapes than the edges before it")
        if not all(np.isfinite(a).all() for a in arrays.values()):
            raise RunFailedError(
                f"edge '{node}' sent weights that are not finite", hint="lower learning_rate or codec_lr_factor"
            )
        for name, array in arrays.items():
            part = array.astype(np.float64) * weight
            sums[name] = sums[name] + part if name in sums else part
    return {n: a.astype(np.float32) for n, a in sums.items()}
