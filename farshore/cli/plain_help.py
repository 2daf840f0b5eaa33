"""Help texts without the backslashes that typer puts before brackets although markup is off."""

from __future__ import annotations

from typing import Any


def unescape_help(command: Any) -> Any:
    """Change a click command tree so that ``\\[default: 1]`` is printed as ``[default: 1]``; returns the tree."""
    for parameter in command.params:
        parameter.get_help_record = _plain(parameter.get_help_record)
    for inner in getattr(command, "commands", {}).values():
        unescape_help(inner)
    return command


def _plain(get_help_record: Any) -> Any:
    def record(context: Any) -> tuple[str, str] | None:
        found = get_help_record(context)
        return None if found is None else (found[0], found[1].replace("\\[", "["))

    return record
