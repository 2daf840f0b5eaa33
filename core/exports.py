"""The protocol of workloads that can export trained models as ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from .seeds import Seed


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A saved model state, and the properties of its run that determine the model.

    Attributes
    ----------
    config : BaseModel
        Configuration of the run.
    seed : Seed
        Root seed of the run.
    clients : int
        Number of clients of the run.
    state : Path
        A safetensors file with the model's state dict.
    """

    config: BaseModel
    seed: Seed
    clients: int
    state: Path


@runtime_checkable
class SupportsExport(Protocol):
    """A workload that can export its models to ONNX."""

    def export(self, trained: TrainedModel, find: Callable[[str], Path], path: Path) -> Mapping[str, Any]:
        """Write the model to ``path`` and verify the file against the original model.

        Parameters
        ----------
        trained : TrainedModel
        find : callable
            Returns the path of a data set by name.
        path : Path
            Replaced if it exists; unchanged if the export fails.

        Returns
        -------
        Mapping
            Properties of the export to report, by name.

        Raises
        ------
        MissingExtraError
            A package that writes or runs ONNX is not installed.
        DataError
            A data set is missing.
        StorageError
            The state is damaged or belongs to another model, or the file cannot be written.
        RunFailedError
            The outputs of the exported file differ from those of the model.
        """
