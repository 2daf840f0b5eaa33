"""Versions that nodes and server compare during the handshake."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

from .errors import VersionError

#: Protocol version; incremented with every incompatible change of frames or control messages.
PROTOCOL = 2


def installed(package: str) -> str:
    """Return the version of an installed package, or an empty string. Does not import it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of the protocol, farshore, torch and Python."""

    protocol: int
    farshore: str
    torch: str
    python: str

    @classmethod
    def local(cls) -> Versions:
        """Return the versions of this process, read from package metadata."""
        return cls(PROTOCOL, installed("farshore") or "0.1.0", installed("torch"), platform.python_version())

    def check(self, other: Versions, *, peer: str, torch: bool = False) -> None:
        """Check that ``other`` is compatible with these versions.

        Parameters
        ----------
        other : Versions
        peer : str
            Name of the peer, for the error message.
        torch : bool
            Also compare torch (major.minor); for runs in which both programs compute with it.

        Raises
        ------
        VersionError
            A version differs.
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
                    f"{peer} has {name} {theirs or 'none'}, this process has {name} {mine or 'none'}",
                    hint=f"install the same {'farshore' if name == 'protocol' else name} on both machines",
                )


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
