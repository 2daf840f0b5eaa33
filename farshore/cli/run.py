"""``farshore run METHOD``: validate the settings, submit the run and follow it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError, ExitCode, UnreachableError
from .cohort import role_requests
from .connect import connected
from .output import Json, emit, note, say

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..client.admin import AdminClient
    from ..proto.control_pb2 import RunInfo


def _methods(incomplete: str) -> list[str]:
    """Return the names of methods that begin with ``incomplete``, for shell completion."""
    from ..core import workloads

    return [name for name in workloads.names() if name.startswith(incomplete)]


@connected
def run(
    admin: AdminClient,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="See 'farshore methods'.", autocompletion=_methods)],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting; dotted keys, YAML values."),
    ] = None,
    app: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Flower app to run; --set overrides its configuration."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; --set overrides it.")] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="N | ROLE=N,…",
            help="Number of nodes, which the server chooses [1]; 4..8 or 4+ lets more join a run in progress.",
        ),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(metavar="[ROLE=]NAME", help="Name of a node to use; repeatable.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A data set on the server.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Root of the seed tree.")] = None,
    wait: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Fail if the run waits longer than this for nodes, e.g. 10m [no limit]."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit and return.")] = False,
    json_: Json = False,
) -> None:
    """Run a method and follow the run to its result."""
    from ..core import workloads
    from .settings import build, mapping, seconds

    roles = role_requests(nodes, node or ())
    if app is not None and (method != "flower" or config is not None):
        raise ConfigError("--app requires the method 'flower' and cannot be combined with --config")
    if app is not None:
        from .apps import app_settings, print_app_hash

        settings: BaseModel
        settings = flower = app_settings(app, set_ or ())
        print_app_hash(flower, app)
    elif method == "flower":
        raise ConfigError("no app given", hint="farshore run flower --app DIR")
    else:
        settings = build(workloads.load(method).config, set_ or (), config)
    submitted = admin.submit(
        method,
        settings.model_dump(mode="json"),
        roles=roles,
        seed=seed,
        data=mapping(data or (), "--data"),
        wait_seconds=seconds(wait, "--wait") if wait is not None else 0.0,
    )
    follow_to_end(admin, submitted, detach=detach, as_json=json_)


#: Seconds until a lost interrupt is raised again, and until a process that has been interrupted must have ended.
_AGAIN_SECONDS, _EXIT_SECONDS = 1.0, 5.0


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise :class:`KeyboardInterrupt` on SIGTERM and on the loss of the terminal, as on Ctrl-C.

    A signal that the process was started to ignore, as ``nohup`` does, stays ignored. Python discards an exception of a
    signal handler that runs in a finalizer. It is raised again each second then, and a process that has not ended
    :data:`_EXIT_SECONDS` after the interrupt is ended.
    """
    in_main = threading.current_thread() is threading.main_thread()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM) if in_main else ()
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        armed = signal.getitimer(signal.ITIMER_REAL)[0] if in_main else 0.0
        for number, handler in before.items():
            signal.signal(number, handler)
        if armed:
            signal.signal(signal.SIGALRM, lambda number, frame: os._exit(ExitCode.INTERRUPTED))
            signal.setitimer(signal.ITIMER_REAL, _EXIT_SECONDS if interrupted else 0.0)


def _say_what_remains(run: RunInfo) -> None:
    """Say that a run which is followed no longer is still there."""
    if run.state == "waiting":
        note(f"run {run.id} remains queued{f' ({run.reason})' if run.reason else ''}; {_drop(run)}")
    else:
        note(f"run {run.id} continues; {_drop(run)}")


def _drop(run: RunInfo) -> str:
    return f"to stop it: farshore runs cancel {run.id}"


def follow_to_end(
    admin: AdminClient,
    submitted: RunInfo,
    *,
    detach: bool,
    as_json: bool,
    print_own: Callable[[RunInfo], None] | None = None,
) -> None:
    """Print the submitted run; then, unless detached, follow it and print its result, by ``print_own`` if given.

    Raises
    ------
    RunFailedError, RunCancelledError
        The run failed, was interrupted or was cancelled, or items of its queue failed.
    """
    from .follow import check_ended, check_items, follow, result
    from .progress import display
    from .summary import as_dict, print_result

    if as_json:
        emit({"event": "submitted", **as_dict(submitted)})
    else:
        say(f"run {submitted.id}: {submitted.workload}, {submitted.state}")
    if detach:
        if not as_json:
            say(f"  farshore runs logs {submitted.id} --follow")
        return
    latest = submitted

    def remember(run: RunInfo) -> None:
        nonlocal latest
        latest = run

    try:
        with interrupted_by_signals(), display(f"run {submitted.id}", as_json=as_json) as shown:
            ended = follow(admin, submitted.id, shown, remember)
    except KeyboardInterrupt:
        _say_what_remains(latest)
        raise
    except UnreachableError:
        note(f"run {latest.id} was {latest.state}; once its server answers again: farshore runs show {latest.id}")
        raise
    if as_json:
        emit({"event": "ended", **as_dict(ended)})
    check_ended(ended)
    if print_own is not None:
        print_own(ended)
    elif not as_json:
        print_result(ended)
    check_items(result(ended), f"run {ended.id}")
