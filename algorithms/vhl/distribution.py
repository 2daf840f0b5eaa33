"""Distributes the virtual data set to clients: sent as bytes, or regenerated from the recipe and checked by digest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from ...core.errors import ConfigError, DataError, StorageError
from ...core.message import Array, Message, Scalar, Tensor
from ...core.transfer import Direction
from ...engines.federated.assets import offer_reply
from ...wire.limits import DEFAULT
from .task import VHLTask
from .virtual import VirtualData, VirtualRecipe

KIND = "virtual"


class Distribution:
    """The virtual data set as the assets of a federated run (``docs/methods/vhl.md``, section 7).

    Implements :class:`~farshore.engines.federated.assets.Assets`.

    Parameters
    ----------
    task : VHLTask
        The program's task, which receives the data; it must use virtual images.
    folder : Path
        Directory for received data, stored by digest; a restarted program finds them there.
    who : str
        The program ("the server", "node edge-1"), for error messages.
    """

    def __init__(self, task: VHLTask, folder: Path, who: str) -> None:
        assert task.recipe is not None
        self._task, self._recipe, self._folder, self._owner = task, task.recipe, folder, who
        self._digest = ""

    @property
    def ships(self) -> bool:
        """Whether the server sends the images, as configured."""
        return self._task.ships

    def manifest(self) -> dict[str, Scalar]:
        """Recipe, digest and whether the server sends the images.

        Raises
        ------
        ConfigError
            The images are to be sent and exceed the payload limit of a frame.
        """
        if self.ships and self._recipe.nbytes > DEFAULT.payload_bytes:
            limit = DEFAULT.payload_bytes
            raise ConfigError(
                f"the virtual data have {self._recipe.nbytes:,} bytes, more than the {limit:,} that fit into a frame",
                hint="use fewer images, or let clients generate them: virtual.distribution=seed",
            )
        return self._manifest(self._data.digest)

    def payload(self, round_index: int) -> Message:
        """The message with all images and labels; see :attr:`VirtualRecipe.nbytes`."""
        return self._payload(round_index, self._data.images.numpy(), self._data.labels.numpy())

    def planned_messages(self) -> list[tuple[Direction, Message]]:
        """Offer, answer and, if the server sends images, a payload of zeros of the real size."""
        offered = Message("control", fields={"what": "offer", **self._manifest("0" * 64)})
        messages: list[tuple[Direction, Message]] = [("down", offered), ("up", offer_reply(0, has=not self.ships))]
        if self.ships:
            labels = np.zeros(self._recipe.count, np.uint8)
            messages.append(("down", self._payload(0, np.zeros(self._recipe.shape, np.uint8), labels)))
        return messages

    def _manifest(self, digest: str) -> dict[str, Scalar]:
        return {"recipe": self._recipe.model_dump_json(), "digest": digest, "ship": self.ships}

    def _payload(self, round_index: int, images: Array, labels: Array) -> Message:
        tensors = {"images": Tensor(images), "labels": Tensor(labels.astype(_label_dtype(self._recipe)))}
        return Message(KIND, round=round_index, tensors=tensors)

    def has(self, manifest: dict[str, Scalar]) -> bool:
        """Load stored data with the offered digest, or generate the data from the recipe; True if the digest matches.

        Raises
        ------
        DataError
            The offer has no valid recipe or digest, or its recipe is not that of this run's configuration.
        """
        try:
            recipe = VirtualRecipe.model_validate_json(str(manifest.get("recipe")))
        except ValidationError as error:
            raise DataError(f"{self._owner} was offered virtual data without a valid recipe: {error}") from None
        if recipe != self._recipe:
            raise DataError(
                f"{self._owner} was offered virtual data with the recipe {recipe}, but this run's is {self._recipe}",
                hint="run the same farshore version on both ends",
            )
        self._digest = str(manifest.get("digest"))
        data = self._load(self._path(self._digest))
        if data is None and not manifest.get("ship"):
            data = VirtualData.from_recipe(recipe)
        if data is None or data.digest != self._digest:
            return False
        self._task.use_virtual_data(data)
        return True

    def accept(self, payload: Message) -> None:
        """Check received data against recipe and digest, store them and hand them to the task."""
        if payload.tensors.keys() != {"images", "labels"}:
            raise DataError(f"{self._owner} received {sorted(payload.tensors)} instead of virtual images and labels")
        images, labels = (np.array(payload.tensors[name].array) for name in ("images", "labels"))
        try:
            data = VirtualData(torch.from_numpy(images), self._recipe)
            data.verify(self._digest)
        except (DataError, TypeError) as error:
            raise DataError(
                f"{self._owner} received virtual data that differ from the offer: {error}",
                hint="start the run again; if it happens again, check the server's memory and disk",
            ) from None
        if not np.array_equal(labels, data.labels.numpy()):
            raise DataError(f"{self._owner} received virtual data whose labels differ from their recipe")
        self._store(data)
        self._task.use_virtual_data(data)

    def save(self) -> Path:
        """Write the images to a file atomically, for worker processes; returns its path."""
        self._store(self._data)
        return self._path(self._data.digest)

    def load(self, path: Path) -> None:
        """Memory-map a file written by :meth:`save`; processes that do so share its pages."""
        data = self._load(path)
        if data is None or data.digest != path.stem:
            raise DataError(f"{path} does not hold the virtual data of this run", hint="delete it and start again")
        self._task.use_virtual_data(data)

    @property
    def _data(self) -> VirtualData:
        return self._task.virtual_data

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DataError(f"{self._owner} was offered virtual data with an invalid digest")
        return self._folder / f"{digest}.u8"

    def _load(self, path: Path) -> VirtualData | None:
        """Memory-map a stored set; None if the file is missing or has the wrong size."""
        size = int(np.prod(self._recipe.shape))
        try:
            if path.stat().st_size != size:
                return None
            images = np.memmap(path, np.uint8, "c", shape=self._recipe.shape)  # copy-on-write: the file is not changed
        except OSError:
            return None
        return VirtualData(torch.from_numpy(images), self._recipe)

    def _store(self, data: VirtualData) -> None:
        path = self._path(data.digest)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data.images.numpy().tofile(temporary)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"{self._owner} cannot write the virtual data to {path.parent}: {error}") from error


def _label_dtype(recipe: VirtualRecipe) -> str:
    return "u1" if recipe.classes <= 256 else "<u2"
