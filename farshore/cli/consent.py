"""Asking whoever sits before a node's terminal, in the agent's loop: a question must not keep it from anything else."""

from __future__ import annotations

import asyncio
import os
import sys

import typer


async def ask(what: str, digest: str) -> bool:
    """Whether ``y`` or ``yes`` was typed; the end of standard input means no."""
    typer.echo(f"a run brings {what} with the hash\n  {digest}\nexecute its code on this machine? [y/N] ", nl=False)
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1024).decode(errors="replace").strip().lower() in {"y", "yes"}
