"""How a failure is told: one clear line, what to do about it, and the right exit code."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from ..core.errors import ExitCode, FarshoreError


def tell(error: BaseException, *, debug: bool = False) -> int:
    """Print ``error`` on standard error and return the exit code that belongs to it.

    Errors that farshore did not raise on purpose get one line as well; the traceback goes to a file that it names.
    """
    if debug and isinstance(error, Exception):
        traceback.print_exception(error)
    if isinstance(error, FarshoreError):
        _print(error.message, error.hint)
        return int(error.exit_code)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        _print("interrupted", "")
        return int(ExitCode.INTERRUPTED)
    if type(error).__name__ == "Exit":  # typer.Exit and the parser's own
        return int(getattr(error, "exit_code", 0))
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left, e.g. `| head`: nothing is wrong.
        sys.stderr.close()
        return int(ExitCode.OK)
    if hasattr(error, "format_message"):
        return _usage(error)
    _print(f"unexpected {type(error).__name__}: {_first_line(error)}", f"the traceback is in {_save(error)}")
    return int(ExitCode.INTERNAL)


def _usage(error: BaseException) -> int:
    """A command line that the parser does not accept; without arguments, its own help is the answer."""
    message = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return int(ExitCode.USAGE)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "farshore"
    _print(message, f"see '{command} --help'")
    return int(ExitCode.USAGE)


def _print(message: str, hint: str) -> None:
    from rich.console import Console
    from rich.text import Text

    # Text, not markup: a path like [home] must be printed as it is.
    line = Text.assemble(("error: ", "bold red"), " ".join(message.split()))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(line)
    if hint:
        console.print(Text.assemble(("  try: ", "cyan"), " ".join(hint.split())))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _save(error: BaseException) -> Path:
    """Write the traceback to a file of its own, readable by its owner only."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="farshore-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    return Path(file.name)
