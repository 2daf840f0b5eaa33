"""A rendezvous store over the session, so that ranks which talk node to node find each other without a port for it."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import Store

from ...core.message import Message
from .star_client import StarClient

#: A key or value is an address or a counter; nobody needs more.
LARGEST = 1 << 16


class SharedStore:
    """The server's side: what the ranks of one generation have written.

    Parameters
    ----------
    send : callable
        ``send(node, message)``.
    """

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        self._send = send
        self._values: dict[str, bytes] = {}
        self._waiting: list[tuple[str, int, str]] = []

    def clear(self) -> None:
        """A new generation begins."""
        self._values.clear()
        self._waiting.clear()

    def take(self, node: str, message: Message) -> None:
        """One question of a node; a value that is not there yet is answered when it is."""
        fields = message.fields
        key, number, do = str(fields.get("key", ""))[:LARGEST], message.micro, fields.get("do")
        value = fields.get("value", b"")
        value = value[:LARGEST] if isinstance(value, bytes) else b""
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
        due = [(node, number) for node, number, wanted in self._waiting if wanted == key]
        self._waiting = [entry for entry in self._waiting if entry[2] != key]
        for node, number in due:
            self._reply(node, number, value)

    def _reply(self, node: str, number: int, value: bytes) -> None:
        self._send(node, Message("control", micro=number, fields={"what": "stored", "value": value}))


class ChannelStore(Store):
    """A rank's side; what :func:`torch.distributed.init_process_group` takes as its store."""

    def __init__(self, line: StarClient) -> None:
        super().__init__()
        self._line = line
        self._lock = threading.Lock()
        self._number = 0

    # Names, arguments and results are torch's, see torch.distributed.Store.

    def set(self, key: str, value: Any) -> None:
        self._ask("set", key, _bytes(value), answered=False)

    def get(self, key: str) -> bytes:
        return self._ask("get", key)

    def add(self, key: str, amount: int) -> int:
        return int(self._ask("add", key, str(amount).encode()))

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return self._ask("swap", key, _bytes(desired), expected=_bytes(expected))

    def check(self, keys: list[str]) -> bool:
        return all(self._ask("check", key) for key in keys)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        for key in keys:
            self._ask("get", key)

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", key))

    def _ask(self, do: str, key: str, value: bytes = b"", answered: bool = True, **more: bytes) -> bytes:
        with self._lock:
            self._number += 1
            return self._line.store(self._number, {"do": do, "key": key, "value": value, **more}, answered)


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
