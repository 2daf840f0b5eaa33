"""``--accept-apps``: approval of code that arrives with a run, by hash or by a prompt on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer

from ..core.errors import ConfigError
from ..core.text import printable

#: The option shared by ``node join`` and ``server up``.
AcceptApps = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-apps", metavar="SHA256|ask", help="Allow runs to execute the app with this hash; repeatable."
    ),
]


def accepted_apps(values: Sequence[str]) -> tuple[frozenset[str], Callable[[str, str], Awaitable[bool]] | None]:
    """Parse ``--accept-apps`` into accepted hashes and a prompt for other apps (None without ``ask``).

    Raises
    ------
    ConfigError
        A value is neither a SHA-256 nor ``ask``, or ``ask`` is given without a terminal.
    """
    hashes = frozenset(value.lower() for value in values if value != "ask")
    for value in hashes:
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise ConfigError(
                f"--accept-apps {value}: neither a SHA-256 nor 'ask'", hint="'farshore run flower' prints an app's hash"
            )
    if "ask" not in values:
        return hashes, None
    if not sys.stdin.isatty():
        raise ConfigError("--accept-apps ask needs a terminal", hint="give the hashes to accept")
    return hashes, ask


async def ask(what: str, digest: str) -> bool:
    """Prompt on the terminal; True if ``y`` or ``yes`` was typed. End of input means no.

    Reads standard input through the running event loop, so that other tasks go on meanwhile.
    """
    question = f"a run carries {printable(what, lines=False)} with the hash\n  {printable(digest, lines=False)}\n"
    typer.echo(f"{question}execute its code on this machine? [y/N] ", nl=False)
    import asyncio

    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1024).decode(errors="replace").strip().lower() in {"y", "yes"}
