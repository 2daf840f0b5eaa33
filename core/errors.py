"""One family of errors, each with the exit code that the command line ends with.

A message says what failed and where; ``hint`` says what to do about it. ``docs/exit-codes.md`` explains each code.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every farshore process."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 10
    DATA = 11
    MISSING_EXTRA = 12
    WIRE = 20
    PEER_LOST = 21
    REFUSED = 22
    VERSION = 23
    UNREACHABLE = 24
    RUN_FAILED = 30
    RUN_CANCELLED = 31
    NOT_FOUND = 32
    STORAGE = 40
    PORT_IN_USE = 41
    INTERRUPTED = 130


class FarshoreError(Exception):
    """Base of every error that farshore raises on purpose.

    Parameters
    ----------
    message : str
        What failed, and where (node, run, round or step).
    hint : str, optional
        What the reader can do about it; one sentence.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} – {self.hint}" if self.hint else self.message


class ConfigError(FarshoreError):
    """A key or value of a configuration is wrong."""

    exit_code = ExitCode.CONFIG


class DataError(FarshoreError):
    """A data set is missing or not in the format it should be in."""

    exit_code = ExitCode.DATA


class MissingExtraError(FarshoreError):
    """A package that belongs to an optional extra is not installed."""

    exit_code = ExitCode.MISSING_EXTRA

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package '{package}' is not installed", hint=f"pip install 'farshore[{extra}]'")


class WireError(FarshoreError):
    """Bytes from a peer are not what the wire format allows.

    ``name`` is that of the channel among several that somebody waited for, else empty.
    """

    exit_code = ExitCode.WIRE
    name = ""


class PeerLostError(FarshoreError):
    """The program at the other end of a channel is gone.

    ``name`` is that of the channel among several that somebody waited for, else empty.
    """

    exit_code = ExitCode.PEER_LOST
    name = ""


class RefusedError(FarshoreError):
    """The other side refused: token, key, name, fingerprint or permission."""

    exit_code = ExitCode.REFUSED


class VersionError(RefusedError):
    """Two ends run versions that do not work together."""

    exit_code = ExitCode.VERSION


class UnreachableError(FarshoreError):
    """Nobody answers at an address."""

    exit_code = ExitCode.UNREACHABLE


class RunFailedError(FarshoreError):
    """A run ended without a result."""

    exit_code = ExitCode.RUN_FAILED


class RunCancelledError(FarshoreError):
    """A run was cancelled."""

    exit_code = ExitCode.RUN_CANCELLED


class NotFoundError(FarshoreError):
    """No run, node, workload or file of that name."""

    exit_code = ExitCode.NOT_FOUND


class StorageError(FarshoreError):
    """A disk is full, read-only, or holds a damaged file."""

    exit_code = ExitCode.STORAGE


class PortInUseError(FarshoreError):
    """Another program listens on the port."""

    exit_code = ExitCode.PORT_IN_USE
