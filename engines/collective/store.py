"""A rendezvous store over the run's session: ranks exchange their gloo addresses without another open port."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import Store

from ...core.message import Message
from .star_client import StarClient

#: Longest key or value in characters or bytes; longer ones are cut. Real ones are addresses and counters.
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

    def handle(self, node: str, message: Message) -> None:
        """Execute a node's request; a read of a missing key is answered once the key is written."""
        fields = message.fields
        key, number, do = str(fields.get("key", ""))[:MAX_LENGTH], message.micro, fields.get("do")
        value = fields.get("value", b"")
        value = value[:MAX_LENGTH] if isinstance(value, bytes) else b""
        if do == "set":
            self._write(key, value)
        elif do == "add":
            total = int(self._values.get(key, b"0")) + int(value or b"0")
            self._write(key, str(total).encode())
            self._reply(node, number, str(total).encode())
        elif do == "swap":
            if self._values.get(key, b"") == fields.get("expected", b""):
                self._write(key, value)
            self._reply(node, number, self._values.get(key, b""))
        elif do == "check":
            self._reply(node, number, b"1" if key in self._values else b"")
        elif do == "delete":
            self._reply(node, number, b"1" if self._values.pop(key, None) is not None else b"")
        elif key in self._values:
            self._reply(node, number, self._values[key])
        else:
            self._waiting.append((node, number, key))

    def _write(self, key: str, value: bytes) -> None:
        self._values[key] = value
        readers = [(node, number) for node, number, missing in self._waiting if missing == key]
        self._waiting = [entry for entry in self._waiting if entry[2] != key]
        for node, number in readers:
            self._reply(node, number, value)

    def _reply(self, node: str, number: int, value: bytes) -> None:
        self._send(node, Message("control", micro=number, fields={"what": "stored", "value": value}))


class ChannelStore(Store):
    """The rank's side, usable as the store of :func:`torch.distributed.init_process_group`."""

    def __init__(self, client: StarClient) -> None:
        super().__init__()
        self._client = client
        self._lock = threading.Lock()
        self._number = 0

    # Names, arguments and results are those of torch.distributed.Store.

    def set(self, key: str, value: Any) -> None:
        self._request("set", key, _bytes(value), has_reply=False)

    def get(self, key: str) -> bytes:
        return self._request("get", key)

    def add(self, key: str, amount: int) -> int:
        return int(self._request("add", key, str(amount).encode()))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return self._request("swap", key, _bytes(desired), expected=_bytes(expected))

    def check(self, keys: list[str]) -> bool:
        return all(self._request("check", key) for key in keys)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        for key in keys:
            self._request("get", key)

    def delete_key(self, key: str) -> bool:
        return bool(self._request("delete", key))

    def _request(self, do: str, key: str, value: bytes = b"", has_reply: bool = True, **more: bytes) -> bytes:
        with self._lock:
            self._number += 1
            return self._client.store_request(self._number, {"do": do, "key": key, "value": value, **more}, has_reply)


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
