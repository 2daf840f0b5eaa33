"""Distributes the virtual data set to clients: sent as an asset, or regenerated and checked by its digest."""

from __future__ import annotations

import numpy as np
import torch

from ...core.errors import DataError
from ...engines.assets.asset import Asset, MemorySource
from ...engines.assets.cache import AssetCache
from .task import VHLTask
from .virtual import VirtualData

NAME = "virtual images"


class Distribution:
    """The virtual data set as the asset of a federated run (``docs/methods/vhl.md``, section 7).

    The content is the images, uint8; labels follow from the recipe. Implements
    :class:`~farshore.engines.federated.assets.Assets`.

    Parameters
    ----------
    task : VHLTask
        The program's task, which receives the data; it must use virtual images.
    """

    def __init__(self, task: VHLTask) -> None:
        assert task.recipe is not None
        self._task, self._recipe = task, task.recipe

    @property
    def ships(self) -> bool:
        """Whether the server sends the images, as configured; otherwise clients generate them."""
        return self._task.ships

    @property
    def planned(self) -> list[Asset]:
        """The asset without its digest; generates nothing."""
        return [Asset.unknown(self._recipe.nbytes, NAME)]

    def sources(self) -> list[MemorySource]:
        """The images of the server."""
        return [MemorySource(self._task.virtual_data.images.numpy(), NAME)]

    def use(self, asset: Asset, cache: AssetCache) -> bool:
        """Map the stored images, or generate them unless the server sends them; True if their digest is the asset's.

        Raises
        ------
        DataError
            The size is not that of this run's recipe.
        """
        if asset.size != self._recipe.nbytes:
            raise DataError(
                f"the server's virtual data have {asset.size:,} bytes, but those of this run have "
                f"{self._recipe.nbytes:,}: {self._recipe}",
                hint="run the same farshore version on both ends",
            )
        data = self._stored(asset, cache)
        if data is None and not self.ships:
            data = VirtualData.from_recipe(self._recipe)
        if data is None or data.digest != asset.digest:
            return False
        self._task.use_virtual_data(data)
        return True

    def _stored(self, asset: Asset, cache: AssetCache) -> VirtualData | None:
        """Map the images of the cache into memory, which processes share; None if they are not there."""
        file = cache.open(asset)
        if file is None:
            return None
        with file:  # the map stays valid, and marks the file as used
            images = np.memmap(file, np.uint8, "c", shape=self._recipe.shape)  # copy-on-write: the file is not changed
        return VirtualData(torch.from_numpy(images), self._recipe)
