"""Which code that comes with runs may be executed on this machine: hashes, or a question at its terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer

from ..core.errors import ConfigError

#: The option that nodes and servers have alike.
AcceptApps = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-apps", metavar="SHA256|ask", help="Execute this app's code when a run brings it; repeat it for more."
    ),
]


def accepted_apps(words: Sequence[str]) -> tuple[frozenset[str], Callable[[str, str], Awaitable[bool]] | None]:
    """What ``--accept-apps`` means: hashes, and whom to ask about others.

    Raises
    ------
    ConfigError
        A word is neither a SHA-256 nor ``ask``, or there is no terminal to ask at.
    """
    hashes = frozenset(word.lower() for word in words if word != "ask")
    for word in hashes:
        if len(word) != 64 or set(word) - set("0123456789abcdef"):
            raise ConfigError(
                f"--accept-apps {word}: neither a SHA-256 nor 'ask'", hint="'farshore run flower' prints an app's hash"
            )
    if "ask" not in words:
        return hashes, None
    if not sys.stdin.isatty():
        raise ConfigError("--accept-apps ask needs a terminal", hint="give the hashes that you accept")
    return hashes, ask


async def ask(what: str, digest: str) -> bool:
    """Whether ``y`` or ``yes`` was typed; the end of standard input means no.

    In the loop of whoever asks: a question must not keep it from anything else.
    """
    typer.echo(f"a run brings {what} with the hash\n  {digest}\nexecute its code on this machine? [y/N] ", nl=False)
    import asyncio

    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1024).decode(errors="replace").strip().lower() in {"y", "yes"}
