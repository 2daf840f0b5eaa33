"""Messages with which a server offers assets and a node fetches those that it lacks.

::

    server                          node
    offer (all assets)       →
                             ←      fetch (asset, offset, count)    repeated until the node holds all assets
    chunk, chunk, …          →
                             ←      ready

The node asks for one batch at a time, so a server never queues more than a batch for it, needs no state per node, and
waits for nobody. An interrupted transfer continues at the first byte that the node lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.control import Control, Protocol
from ...core.errors import WireError
from ...core.message import Message, Tensor
from .asset import Asset, Bytes

#: Largest chunk, one per message.
CHUNK_BYTES = 1 << 22
#: Largest batch that a node may ask for; fits into the window of unacknowledged bytes.
BATCH_BYTES = 1 << 24
#: Largest number of assets in an offer.
MOST_ASSETS = 4096

_CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Offer(Control, what="offer"):
    """The assets that the server has; ``assets`` are their parts by position."""

    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, assets: Sequence[Asset]) -> Offer:
        """Return the offer of ``assets``; they are numbered by their position."""
        if len(assets) > MOST_ASSETS:
            raise ValueError(f"{len(assets)} assets exceed the limit of {MOST_ASSETS} per offer")
        return cls(*(tuple(getattr(each, part) for each in assets) for part in ("digest", "size", "name")))

    def assets(self, peer: str) -> list[Asset]:
        """Return the offered assets.

        Raises
        ------
        WireError
            The offer is invalid; the error names ``peer``.
        """
        try:
            if len(self.digests) > MOST_ASSETS:
                raise ValueError(f"more than {MOST_ASSETS} assets")
            return [Asset(*parts) for parts in zip(self.digests, self.sizes, self.names, strict=True)]
        except ValueError as error:
            raise WireError(f"{peer}: invalid 'offer' message: {error}") from None


@dataclass(frozen=True, slots=True)
class Fetch(Control, what="fetch"):
    """A node's request for ``count`` bytes of the ``index``-th asset, beginning at ``offset``."""

    index: int
    offset: int
    count: int

    @classmethod
    def next(cls, index: int, asset: Asset, offset: int) -> Fetch:
        """Return the request for the next batch of an asset of which ``offset`` bytes are there."""
        return cls(index, offset, min(BATCH_BYTES, asset.size - offset))


@dataclass(frozen=True, slots=True)
class Ready(Control, what="ready"):
    """A node's answer once it holds all offered assets."""


@dataclass(frozen=True, slots=True)
class Chunk(Control, what="chunk", kind="asset"):
    """A part of the ``index``-th asset, beginning at ``offset``; its bytes are the message's tensor."""

    index: int
    offset: int

    def with_content(self, content: Bytes, round_index: int) -> Message:
        """Return the message of the chunk."""
        return self.message(round=round_index, tensors={_CONTENT: Tensor(content)})


FROM_SERVER: Protocol[Offer | Chunk] = Protocol(Offer, Chunk)
FROM_NODE: Protocol[Fetch | Ready] = Protocol(Fetch, Ready)


def content_of(message: Message, peer: str) -> Bytes:
    """Return the bytes of a received chunk.

    Raises
    ------
    WireError
        The message has other tensors than one of bytes, or too many bytes.
    """
    tensor = message.tensors.get(_CONTENT)
    if tensor is None or len(message.tensors) > 1 or tensor.array.dtype != "u1" or tensor.array.ndim != 1:
        raise WireError(f"{peer}: invalid 'chunk' message: expected one tensor of bytes")
    if not 0 < tensor.array.nbytes <= CHUNK_BYTES:
        raise WireError(f"{peer}: invalid 'chunk' message: {tensor.array.nbytes} bytes")
    return tensor.array  # type: ignore[return-value]
