"""A rendezvous store over the run's session: ranks exchange their gloo addresses without another open port."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

from ...core.errors import WireError
from ...core.message import Message
from ...models.torch_internals import Store
from .protocol import Stored, StoreRequest
from .star_client import StarClient

#: Maximum length of a key or value, in characters or bytes. Real ones are addresses and counters.
MAX_LENGTH = 1 << 16


class SharedStore:
    """The server side of the store: the keys that the ranks of one generation have written.

    Parameters
    ----------
    send : callable
        ``send(node, message)``.
    """

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        self._send = send
        self._values: dict[str, bytes] = {}
        #: Pending reads of keys that do not exist yet: node, request number, key.
        self._waiting: list[tuple[str, int, str]] = []

    def clear(self) -> None:
        """Delete all keys and pending reads; called when a new group forms."""
        self._values.clear()
        self._waiting.clear()

    def handle(self, node: str, number: int, request: StoreRequest) -> None:
        """Execute a node's request; a read of a missing key is answered once the key is written.

        Parameters
        ----------
        number : int
            Number of the request.

        Raises
        ------
        WireError
            The key or the value is too long, or ``add`` is given something other than a number.
        """
        key, value = request.key, request.value
        if max(len(key), len(value)) > MAX_LENGTH:
            raise WireError(f"node {node}: a key or value of the store exceeds {MAX_LENGTH} bytes")
        match request.do:
            case "set":
                self._write(key, value)
            case "add":
                total = self._add(node, key, value)
                self._write(key, total)
                self._reply(node, number, total)
            case "swap":
                if self._values.get(key, b"") == (request.expected or b""):
                    self._write(key, value)
                self._reply(node, number, self._values.get(key, b""))
            case "check":
                self._reply(node, number, b"1" if key in self._values else b"")
            case "delete":
                self._reply(node, number, b"1" if self._values.pop(key, None) is not None else b"")
            case "get" if key in self._values:
                self._reply(node, number, self._values[key])
            case "get":
                self._waiting.append((node, number, key))

    def _add(self, node: str, key: str, value: bytes) -> bytes:
        try:
            return str(int(self._values.get(key, b"0")) + int(value or b"0")).encode()
        except ValueError:
            raise WireError(f"node {node}: '{key[:40]}' of the store or what is added to it is not a number") from None

    def _write(self, key: str, value: bytes) -> None:
        self._values[key] = value
        readers = [(node, number) for node, number, missing in self._waiting if missing == key]
        self._waiting = [entry for entry in self._waiting if entry[2] != key]
        for node, number in readers:
            self._reply(node, number, value)

    def _reply(self, node: str, number: int, value: bytes) -> None:
        self._send(node, Stored(value).message(micro=number))


class ChannelStore(Store):
    """The rank's side, usable as the store of :func:`torch.distributed.init_process_group`."""

    def __init__(self, client: StarClient) -> None:
        super().__init__()
        self._client = client
        self._lock = threading.Lock()
        self._number = 0

    # Names, arguments and results are those of torch.distributed.Store.

    def set(self, key: str, value: Any) -> None:
        self._request(StoreRequest("set", key, _bytes(value)))

    def get(self, key: str) -> bytes:
        return self._request(StoreRequest("get", key, b""))

    def add(self, key: str, amount: int) -> int:
        return int(self._request(StoreRequest("add", key, str(amount).encode())))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return self._request(StoreRequest("swap", key, _bytes(desired), _bytes(expected)))

    def check(self, keys: list[str]) -> bool:
        return all(self._request(StoreRequest("check", key, b"")) for key in keys)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def delete_key(self, key: str) -> bool:
        return bool(self._request(StoreRequest("delete", key, b"")))

    def _request(self, request: StoreRequest) -> bytes:
        with self._lock:
            self._number += 1
            return self._client.store_request(self._number, request)


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
