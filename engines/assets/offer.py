"""The server's side: answers what nodes ask for, and describes the whole exchange for estimates and simulations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...core.errors import WireError
from ...core.message import Message
from ...core.transfer import Direction
from .asset import Asset, BlankSource, Source, spans
from .protocol import BATCH_BYTES, CHUNK_BYTES, FROM_NODE, Chunk, Fetch, Offer, Ready


class AssetOffer:
    """Offers assets to any number of nodes, and sends those that a node lacks.

    Parameters
    ----------
    sources : sequence of Source
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._offer = Offer.of([source.asset for source in sources])

    def message(self, round_index: int = 0) -> Message:
        """Return the message that begins the exchange with a node."""
        return self._offer.message(round=round_index)

    def reply(self, answer: Message, node: str) -> Iterator[Message] | None:
        """Return the chunks that a node asks for, read one by one; None if the node holds all assets.

        Raises
        ------
        WireError
            The message is neither a valid request nor ``ready``; the error names ``node``.
        """
        match FROM_NODE.read(answer, node):
            case Ready():
                return None
            case Fetch(index=index, offset=offset, count=count):
                if not 0 <= index < len(self._sources):
                    raise WireError(f"{node}: requested asset {index} of {len(self._sources)}")
                source = self._sources[index]
                if not (0 <= offset < source.asset.size and 0 < count <= min(BATCH_BYTES, source.asset.size - offset)):
                    raise WireError(f"{node}: requested {count} bytes at {offset} of {source.asset}")
                return (
                    Chunk(index, begin).with_content(source.read(begin, size), answer.round)
                    for begin, size in spans(offset + count, CHUNK_BYTES, offset)
                )


def exchange(assets: Sequence[Asset], round_index: int = 0, *, lacking: bool) -> Iterator[tuple[Direction, Message]]:
    """Yield all messages between the server and a node that lacks all of the assets, or none; chunks hold zeros."""
    offer = AssetOffer([BlankSource(asset) for asset in assets])
    yield "down", offer.message(round_index)
    for index, asset in enumerate(assets if lacking else ()):
        for offset, _ in spans(asset.size, BATCH_BYTES):
            request = Fetch.next(index, asset, offset).message(round=round_index)
            yield "up", request
            for chunk in offer.reply(request, "a node") or ():
                yield "down", chunk
    yield "up", Ready().message(round=round_index)
