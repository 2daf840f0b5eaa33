"""Error reporting of the command line: one line, a hint, and the exit code."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from ..core.errors import ExitCode, FarshoreError
from ..core.text import printable


def report_error(error: BaseException, *, debug: bool = False) -> int:
    """Print ``error`` on standard error and return its exit code.

    Unexpected exceptions are also printed as one line, which names a file with the traceback.
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
    if type(error).__name__ == "Exit":  # typer.Exit and click's Exit
        return int(getattr(error, "exit_code", 0))
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe has closed it, e.g. `| head`.
        sys.stderr.close()
        return int(ExitCode.OK)
    if hasattr(error, "format_message"):
        return _usage(error)
    _print(f"unexpected {type(error).__name__}: {_first_line(error)}", f"the traceback is in {_save(error)}")
    return int(ExitCode.INTERNAL)


def _usage(error: BaseException) -> int:
    """Report a usage error; without arguments, print the help text instead."""
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

    # Text, not markup: a path like [home] must be printed literally.
    line = Text.assemble(("error: ", "bold red"), _one_line(message))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(line)
    if hint:
        console.print(Text.assemble(("  try: ", "cyan"), _one_line(hint)))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()), lines=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _save(error: BaseException) -> Path:
    """Write the traceback to a new file, readable by its owner only."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="farshore-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    return Path(file.name)
