"""The assets that every client of a run needs before its first round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..assets.asset import Asset, Source
from ..assets.cache import AssetCache


class Assets(Protocol):
    """The assets of a run; the server and node programs each create their own instance.

    They are offered to a client before its first round, and sent if it lacks them; so a client that is never drawn
    costs nothing.
    """

    @property
    def ships(self) -> bool:
        """Whether a client that does not have the content in its cache must be sent it."""

    @property
    def planned(self) -> Sequence[Asset]:
        """The assets with their real sizes, perhaps without digests; creates no content."""

    def sources(self) -> Sequence[Source]:
        """Return the assets with their content, on the server."""

    def use(self, asset: Asset, cache: AssetCache) -> bool:
        """Let this program use an asset that is in the cache, or that it can create; False if the content is missing.

        Raises
        ------
        DataError
            The run needs no such asset.
        """
