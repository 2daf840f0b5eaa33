"""What the operator of a node has said with ``farshore node join``, so that it need not be said again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import StorageError
from ..core.files import write_file

_FILE = "options.json"


@dataclass(frozen=True, slots=True)
class Remembered:
    """The options of a node that are kept in its home.

    Attributes
    ----------
    address : str
        ``host:port`` of the server.
    data : Mapping[str, str]
        Absolute paths of data sets, by name.
    labels : Mapping[str, str]
    shard : str
        ``I/N``, or empty.
    profile, certificate : str
        Absolute paths, or empty.
    accept_apps : tuple of str
        SHA-256 of accepted apps.
    peer_listen : str
        Network interface, or empty.
    keep_runs : int
        0 = the default.
    insecure : bool
    """

    address: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    shard: str = ""
    profile: str = ""
    certificate: str = ""
    accept_apps: tuple[str, ...] = ()
    peer_listen: str = ""
    keep_runs: int = 0
    insecure: bool = False

    @classmethod
    def read(cls, home: Path) -> Remembered:
        """Read the options in a node's home; the defaults if there are none.

        Raises
        ------
        StorageError
            The file cannot be read or is damaged.
        """
        path = home / _FILE
        try:
            return cls._parse(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            hint = "delete it, and say data sets and labels again with the next 'node join'"
            raise StorageError(f"{path} is damaged", hint=hint) from error

    @classmethod
    def _parse(cls, values: Any) -> Remembered:
        found = cls(**values)
        texts = (found.address, found.shard, found.profile, found.certificate, found.peer_listen, *found.accept_apps)
        texts += (*found.data, *found.data.values(), *found.labels, *found.labels.values())
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("not a text")
        if type(found.keep_runs) is not int or found.keep_runs < 0 or not isinstance(found.insecure, bool):
            raise ValueError("not a number")
        return replace(found, accept_apps=tuple(found.accept_apps))

    def write(self, home: Path) -> None:
        """Write the options to a node's home; raises :class:`StorageError`."""
        write_file(home / _FILE, json.dumps(asdict(self), indent=2).encode() + b"\n")

    def updated(self, said: Remembered) -> Remembered:
        """Return these options with those that were ``said`` this time; data sets and labels are merged by name."""
        changes = {name: value for name, value in asdict(said).items() if value}
        changes |= {"data": {**self.data, **said.data}, "labels": {**self.labels, **said.labels}}
        return replace(self, **changes)

    def describe(self) -> str:
        """Return the options in the words of the command line; empty if there are none."""
        parts = [f"--data {name}={path}" for name, path in self.data.items()]
        parts += [f"--label {key}={value}" for key, value in self.labels.items()]
        parts += [f"--accept-apps {digest}" for digest in self.accept_apps]
        named = {"shard": self.shard, "profile": self.profile, "certificate": self.certificate}
        named |= {"peer-listen": self.peer_listen, "keep-runs": str(self.keep_runs or "")}
        parts += [f"--{name} {value}" for name, value in named.items() if value]
        return " ".join([*parts, *(["--insecure"] if self.insecure else [])])
