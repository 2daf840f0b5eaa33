"""Versions that two ends compare before they work together."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

from .errors import VersionError

#: Bumped whenever frames or control messages change in a way an older peer cannot read.
PROTOCOL = 2


def installed(package: str) -> str:
    """Version of an installed package, or an empty string; imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Versions:
    """What the handshake compares."""

    protocol: int
    farshore: str
    torch: str
    python: str

    @classmethod
    def here(cls) -> Versions:
        """Versions of this process, read from package metadata."""
        return cls(PROTOCOL, installed("farshore") or "0.1.0", installed("torch"), platform.python_version())

    def check(self, other: Versions, *, whose: str, torch: bool = False) -> None:
        """Raise :class:`VersionError` in one line when ``other`` cannot work with this end.

        Parameters
        ----------
        whose : str
            Names the other end in the message.
        torch : bool
            Also compare torch (major.minor), as runs that compute on both ends need.
        """
        pairs = [
            ("protocol", str(self.protocol), str(other.protocol)),
            ("farshore", self.farshore, other.farshore),
        ]
        if torch:
            pairs.append(("torch", _minor(self.torch), _minor(other.torch)))
        for name, mine, theirs in pairs:
            if mine != theirs:
                raise VersionError(
                    f"{whose} has {name} {theirs or 'none'}, this end has {name} {mine or 'none'}",
                    hint=f"install the same {'farshore' if name == 'protocol' else name} on both ends",
                )


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
