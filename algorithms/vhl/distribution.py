"""How virtual data reach the clients: sent as bytes, or made by each from the recipe (specification of VHL §8.1)."""

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
    """See :class:`~farshore.engines.federated.assets.Assets`.

    Parameters
    ----------
    task : VHLTask
        Of the program; holds the data in the end. With virtual data.
    folder : Path
        Where shipped data are kept, by digest; a program that comes back finds them there.
    who : str
        Whose they are, for errors.
    """

    def __init__(self, task: VHLTask, folder: Path, who: str) -> None:
        assert task.recipe is not None
        self._task, self._recipe, self._folder, self._who = task, task.recipe, folder, who
        self._digest = ""

    @property
    def ships(self) -> bool:
        """As configured; a generator is only the same everywhere if it has no network."""
        return self._task.ships

    def manifest(self) -> dict[str, Scalar]:
        """Recipe and digest.

        Raises
        ------
        ConfigError
            They are to be shipped, and are more than a frame takes.
        """
        if self.ships and self._recipe.nbytes > DEFAULT.payload_bytes:
            most = DEFAULT.payload_bytes
            raise ConfigError(
                f"virtual data of {self._recipe.nbytes:,} bytes are more than the {most:,} that a frame takes",
                hint="make fewer, or have clients make them: virtual.distribution=seed",
            )
        return self._manifest(self._data.digest)

    def payload(self, round_index: int) -> Message:
        """A byte per pixel and one per label."""
        return self._goods(round_index, self._data.images.numpy(), self._data.labels.numpy())

    def planned_messages(self) -> list[tuple[Direction, Message]]:
        """Offer, answer and, where they are shipped, as many zeros as there are pixels and labels."""
        offered = Message("control", fields={"what": "offer", **self._manifest("0" * 64)})
        said: list[tuple[Direction, Message]] = [("down", offered), ("up", offer_reply(0, has=not self.ships))]
        if self.ships:
            labels = np.zeros(self._recipe.count, np.uint8)
            said.append(("down", self._goods(0, np.zeros(self._recipe.shape, np.uint8), labels)))
        return said

    def _manifest(self, digest: str) -> dict[str, Scalar]:
        return {"recipe": self._recipe.model_dump_json(), "digest": digest, "ship": self.ships}

    def _goods(self, round_index: int, images: Array, labels: Array) -> Message:
        tensors = {"images": Tensor(images), "labels": Tensor(labels.astype(_label_type(self._recipe)))}
        return Message(KIND, round=round_index, tensors=tensors)

    def has(self, manifest: dict[str, Scalar]) -> bool:
        """Kept from before, or made by the recipe with the same digest.

        Raises
        ------
        DataError
            The server's recipe is not the one of this run's configuration.
        """
        try:
            recipe = VirtualRecipe.model_validate_json(str(manifest.get("recipe")))
        except ValidationError as error:
            raise DataError(f"{self._who} was offered virtual data without a recipe: {error}") from None
        if recipe != self._recipe:
            raise DataError(
                f"{self._who} was offered virtual data by the recipe {recipe}; its own is {self._recipe}",
                hint="run the same farshore version on both ends",
            )
        self._digest = str(manifest.get("digest"))
        data = self._kept(self._path(self._digest))
        if data is None and not manifest.get("ship"):
            data = VirtualData.from_recipe(recipe)
        if data is None or data.digest != self._digest:
            return False
        self._task.hold(data)
        return True

    def accept(self, payload: Message) -> None:
        """Check what was sent against recipe and digest, and keep it."""
        if payload.tensors.keys() != {"images", "labels"}:
            raise DataError(f"{self._who} was sent {sorted(payload.tensors)} instead of virtual images and labels")
        images, labels = (np.array(payload.tensors[name].array) for name in ("images", "labels"))
        try:
            data = VirtualData(torch.from_numpy(images), self._recipe)
            data.verify(self._digest)
        except (DataError, TypeError) as error:
            raise DataError(
                f"{self._who} was sent other virtual data than were offered: {error}",
                hint="start the run again; if it happens again, the server's memory or disk is damaged",
            ) from None
        if not np.array_equal(labels, data.labels.numpy()):
            raise DataError(f"{self._who} was sent virtual data whose labels are not those of their recipe")
        self._write(data)
        self._task.hold(data)

    def save(self) -> Path:
        """Write the images, whole or not at all."""
        self._write(self._data)
        return self._path(self._data.digest)

    def load(self, path: Path) -> None:
        """Map the file: processes that do share its pages."""
        data = self._kept(path)
        if data is None or data.digest != path.stem:
            raise DataError(f"{path} does not hold the virtual data of this run", hint="delete it and start again")
        self._task.hold(data)

    @property
    def _data(self) -> VirtualData:
        return self._task.virtual_data

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DataError(f"{self._who} was offered virtual data whose digest is none")
        return self._folder / f"{digest}.u8"

    def _kept(self, path: Path) -> VirtualData | None:
        """What a file holds, if it has the right size."""
        size = int(np.prod(self._recipe.shape))
        try:
            if path.stat().st_size != size:
                return None
            images = np.memmap(path, np.uint8, "c", shape=self._recipe.shape)  # private: a write stays here
        except OSError:
            return None
        return VirtualData(torch.from_numpy(images), self._recipe)

    def _write(self, data: VirtualData) -> None:
        path = self._path(data.digest)
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data.images.numpy().tofile(unfinished)
            unfinished.replace(path)
        except OSError as error:
            raise StorageError(f"{self._who} cannot keep the virtual data in {path.parent}: {error}") from error


def _label_type(recipe: VirtualRecipe) -> str:
    return "u1" if recipe.classes <= 256 else "<u2"
