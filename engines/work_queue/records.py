"""The results of a queue on disk: one record per finished item, exactly once, in an append-only stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import StorageError
from ...core.message import Array
from ...core.session import ServerSession
from .item import ItemResult, Outcome, WorkItem

#: Name of the stream.
STREAM = "results"
_TENSOR = "tensor."


class Records:
    """The results so far; those of an earlier program of the run are read from its stream.

    Parameters
    ----------
    session : ServerSession
    """

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._digest = bytes(32)
        self.results: dict[str, ItemResult] = {}
        for record in session.stream(STREAM):
            self._remember(decode(record))

    def __len__(self) -> int:
        """Number of results."""
        return len(self.results)

    def __contains__(self, item: WorkItem) -> bool:
        """Whether an item has a result."""
        return item.identity in self.results

    def add(self, results: Sequence[ItemResult]) -> None:
        """Append results, and make them durable together.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        for result in results:
            self._session.append(STREAM, encode(result))
            self._remember(result)
        self._session.save_checkpoint(len(self), {"digest": np.frombuffer(self._digest, np.uint8)}, {})

    def _remember(self, result: ItemResult) -> None:
        assert result.item.identity not in self.results, "an item was recorded twice"
        self.results[result.item.identity] = result
        # A sum of digests, so that it does not depend on the order.
        total = int.from_bytes(self._digest, "little") + int.from_bytes(digest_of(result), "little")
        self._digest = (total % (1 << 256)).to_bytes(32, "little")


def encode(result: ItemResult) -> dict[str, Array]:
    """Return the record of a result."""
    item, outcome = result.item, result.outcome
    head: dict[str, Any] = {
        "index": result.index,
        "config": item.config,
        "seed": item.seed,
        "inputs": item.inputs,
        "error": result.error,
        "node": result.node,
        "seconds": result.seconds,
        "attempts": result.attempts,
        "metrics": None if outcome is None else outcome.metrics,
        "measured": {} if outcome is None else outcome.measured,
    }
    tensors = {} if outcome is None else {_TENSOR + name: array for name, array in outcome.tensors.items()}
    return {"head": np.frombuffer(json.dumps(head).encode(), np.uint8), **tensors}


def decode(record: dict[str, Array]) -> ItemResult:
    """Read a record.

    Raises
    ------
    StorageError
        It is none of a result.
    """
    try:
        head = json.loads(record["head"].tobytes())
        tensors = {name.removeprefix(_TENSOR): array for name, array in record.items() if name != "head"}
        failed = head["metrics"] is None
        return ItemResult(
            head["index"],
            WorkItem(head["config"], head["seed"], head["inputs"]),
            None if failed else Outcome(head["metrics"], head["measured"], tensors),
            head["error"],
            head["node"],
            head["seconds"],
            head["attempts"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"a record of the stream '{STREAM}' is not a result: {error}") from error


def digest_of(result: ItemResult) -> bytes:
    """SHA-256 of what does not depend on time and place: the item, its metrics, and its tensors."""
    digest = hashlib.sha256(result.item.identity.encode())
    if result.outcome is not None:
        digest.update(json.dumps(dict(result.outcome.metrics), sort_keys=True).encode())
        for name, array in sorted(result.outcome.tensors.items()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode() + array.tobytes())
    return digest.digest()
