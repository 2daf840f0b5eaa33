"""The protocol of workloads whose trained models can be written for other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel

from .seeds import Seed

#: ``onnx``: a graph for ONNX Runtime; ``safetensors``: named weights; ``hf``: a folder for ``from_pretrained``.
Format: TypeAlias = Literal["onnx", "safetensors", "hf"]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Where a run's model is, and the properties of the run that determine it.

    Attributes
    ----------
    config : BaseModel
        Configuration of the run.
    seed : Seed
        Root seed of the run.
    clients : int
        Number of clients of the run.
    state : Path or None
        A safetensors file with the model's state dict; None if the run wrote none.
    directory : Path or None
        The run directory, with the server's checkpoints.
    node_folders : Mapping of str to Path
        Folders of the nodes' checkpoints that are on this machine, by name.
    """

    config: BaseModel
    seed: Seed
    clients: int
    state: Path | None
    directory: Path | None = None
    node_folders: Mapping[str, Path] = field(default_factory=dict)


@runtime_checkable
class SupportsExport(Protocol):
    """A workload that can write its models for other programs."""

    @property
    def exports(self) -> Sequence[Format]:
        """The formats that :meth:`export` writes."""

    def export(
        self, trained: TrainedModel, find: Callable[[str], Path], path: Path, kind: Format = "onnx"
    ) -> Mapping[str, Any]:
        """Write the model to ``path``, and verify what was written against the original model.

        Parameters
        ----------
        trained : TrainedModel
        find : callable
            Returns the path of a data set by name.
        path : Path
            A file, or a folder for ``hf``. Replaced if it exists; unchanged if the export fails.
        kind : {"onnx", "safetensors", "hf"}

        Returns
        -------
        Mapping
            Properties of the export to report, by name.

        Raises
        ------
        ConfigError
            The model cannot be written in this format; the message says why.
        MissingExtraError
            A package that writes or runs the format is not installed.
        DataError
            A data set is missing.
        NotFoundError, StorageError
            A state is missing or damaged or belongs to another model, or the file cannot be written.
        RunFailedError
            The outputs of the exported model differ from those of the original.
        """
