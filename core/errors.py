"""The exceptions that farshore raises, and the exit code of each.

A message says what failed and where; ``hint`` says how to fix it. ``docs/exit-codes.md`` explains each code.
"""

from enum import IntEnum

from .packages import install_command


class ExitCode(IntEnum):
    """Exit codes of farshore processes."""

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
    METHOD = 33
    STORAGE = 40
    PORT_IN_USE = 41
    INTERRUPTED = 130


class FarshoreError(Exception):
    """Base class of all errors that farshore raises deliberately.

    Parameters
    ----------
    message : str
        What failed, and where (node, run, round or step).
    hint : str, optional
        How to fix it; one sentence.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} – {self.hint}" if self.hint else self.message


class ConfigError(FarshoreError):
    """A configuration has an unknown key or an invalid value."""

    exit_code = ExitCode.CONFIG


class DataError(FarshoreError):
    """A data set is missing or not in the expected format."""

    exit_code = ExitCode.DATA


class MissingExtraError(FarshoreError):
    """A package of an optional extra is not installed."""

    exit_code = ExitCode.MISSING_EXTRA

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package '{package}' is not installed", hint=install_command(extra))


class WireError(FarshoreError):
    """A message or frame violates the wire format or a limit.

    ``name`` is set by calls that receive from several channels: the name of the channel that failed.
    """

    exit_code = ExitCode.WIRE
    name = ""


class PeerLostError(FarshoreError):
    """The program at the other end of a channel has ended, restarted or closed the channel.

    ``name`` is set by calls that receive from several channels: the name of the channel that failed.
    """

    exit_code = ExitCode.PEER_LOST
    name = ""


class RefusedError(FarshoreError):
    """The peer rejected a token, key, name, fingerprint or permission."""

    exit_code = ExitCode.REFUSED


class VersionError(RefusedError):
    """The two peers run incompatible versions."""

    exit_code = ExitCode.VERSION


class UnreachableError(FarshoreError):
    """An address does not respond."""

    exit_code = ExitCode.UNREACHABLE


class RunFailedError(FarshoreError):
    """A run ended without a result."""

    exit_code = ExitCode.RUN_FAILED


class RunCancelledError(FarshoreError):
    """A run was cancelled."""

    exit_code = ExitCode.RUN_CANCELLED


class NotFoundError(FarshoreError):
    """There is no run, node, workload or file with the given name."""

    exit_code = ExitCode.NOT_FOUND


class MethodError(FarshoreError):
    """Code of a method failed where farshore called it: at its import, or while it read a configuration."""

    exit_code = ExitCode.METHOD


class StorageError(FarshoreError):
    """A disk is full or read-only, or a file is damaged."""

    exit_code = ExitCode.STORAGE


class PortInUseError(FarshoreError):
    """The port is in use by another program."""

    exit_code = ExitCode.PORT_IN_USE
