"""What a method offers whose trained models can leave as files that other programs run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from .seeds import Seed


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A run as far as its model depends on it, and one of its states.

    Attributes
    ----------
    config : BaseModel
    seed : Seed
        The run's.
    clients : int
        How many took part.
    state : Path
        A safetensors file, tensors by the names of the model's state.
    """

    config: BaseModel
    seed: Seed
    clients: int
    state: Path


@runtime_checkable
class Exports(Protocol):
    """A workload that can write its models as ONNX."""

    def export(self, trained: TrainedModel, find: Callable[[str], Path], path: Path) -> Mapping[str, Any]:
        """Write the model to ``path``, checked against what it was made from; returns what there is to tell of it.

        Parameters
        ----------
        trained : Trained
        find : callable
            Gives a data set's path by name.
        path : Path
            Replaced if it exists; as it was where this fails.

        Raises
        ------
        MissingExtraError
            A package that writes or runs ONNX is not installed.
        DataError
            A data set is not there.
        StorageError
            The state is damaged or another model's, or the file cannot be written.
        RunFailedError
            The file does not compute what the model computes.
        """
