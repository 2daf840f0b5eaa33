"""The node's side: fetches the assets that its machine lacks."""

from __future__ import annotations

from collections.abc import Callable

from ...core.errors import DataError, WireError
from ...core.message import Message
from .asset import Asset
from .cache import AssetCache, PartialAsset
from .protocol import FROM_SERVER, Chunk, Fetch, Offer, Ready, content_of


class AssetReceiver:
    """Answers the messages of an :class:`~farshore.engines.assets.offer.AssetOffer`.

    Parameters
    ----------
    cache : AssetCache
    use : callable
        ``use(asset)`` is called for each offered asset until it returns True. It opens the asset in the cache, or
        creates the content itself; False = the content is missing, and is fetched.
    server : str
        The peer's name in errors.
    """

    def __init__(self, cache: AssetCache, use: Callable[[Asset], bool], server: str = "the server") -> None:
        self._cache, self._use, self._server = cache, use, server
        self._assets: list[Asset] = []
        self._index = 0
        self._partial: PartialAsset | None = None
        self._batch_end = 0

    def answer(self, message: Message) -> Message | None:
        """Handle a message; return the message to send, if any.

        Raises
        ------
        WireError
            The message is invalid or unexpected.
        DataError
            The received content differs from its digest.
        StorageError
            The content cannot be stored.
        """
        match FROM_SERVER.read(message, self._server):
            case Offer() as offer:
                self.close()
                self._assets, self._index = offer.assets(self._server), 0
            case Chunk(index=index, offset=offset):
                if not self._store(message, index, offset):
                    return None
        return self._next().message(round=message.round)

    def close(self) -> None:
        """Interrupt a transfer; what was received is kept."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None

    def _next(self) -> Fetch | Ready:
        """Return the next request."""
        while self._partial is None:
            if self._index == len(self._assets):
                return Ready()
            asset = self._assets[self._index]
            if self._use(asset):
                self._index += 1
                continue
            self._partial = self._cache.receive(asset)
            if self._partial.size == asset.size:
                self._finish(self._partial)
        request = Fetch.next(self._index, self._partial.asset, self._partial.size)
        self._batch_end = request.offset + request.count
        return request

    def _store(self, message: Message, index: int, offset: int) -> bool:
        """Store a chunk; return whether the batch is complete."""
        content, partial = content_of(message, self._server), self._partial
        if partial is None or index != self._index or offset != partial.size:
            raise WireError(f"{self._server}: unexpected chunk of asset {index} at {offset}")
        if offset + content.nbytes > self._batch_end:
            raise WireError(f"{self._server}: sent more of '{partial.asset.name}' than was requested")
        partial.write(content)
        if partial.size == partial.asset.size:
            self._finish(partial)
        elif partial.size < self._batch_end:
            return False
        return True

    def _finish(self, partial: PartialAsset) -> None:
        """Make a complete asset available, and use it; one that began in an earlier run is fetched again if damaged."""
        self._partial, continued = None, partial.continued
        try:
            partial.commit()
        except DataError:
            if not continued:
                raise DataError(
                    f"{self._server} sent content of '{partial.asset.name}' that differs from its digest",
                    hint="start the run again; if it happens again, check memory and disk of the server",
                ) from None
            return
        if not self._use(partial.asset):
            raise DataError(
                f"'{partial.asset.name}' cannot be read after it was stored", hint="check this machine's disk"
            )
        self._index += 1
