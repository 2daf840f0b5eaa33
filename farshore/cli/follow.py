"""Follow a run on a server until it ends, and raise an error unless it finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import RunCancelledError, RunFailedError
from .progress import ENDED, Display, Meter

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..proto.control_pb2 import RunInfo


def follow(
    admin: AdminClient, run_id: str, shown: Display, on_change: Callable[[RunInfo], None] | None = None
) -> RunInfo:
    """Display a run's progress until it ends and return its final state; ``on_change`` gets each state.

    Raises
    ------
    UnreachableError
        The connection to the server is lost.
    """
    meter = Meter()
    last = None
    for event in admin.follow(run_id):
        last = event.run
        if on_change is not None:
            on_change(last)
        values = progress_values(last)
        shown.show(meter.read(int(last.done), int(last.total), values, time.monotonic(), last.state, last.reason))
        if last.state in ENDED:
            break
    return admin.run(run_id)  # events have neither configuration nor result


def check_ended(run: RunInfo) -> None:
    """Raise an error unless the run finished.

    Raises
    ------
    RunFailedError, RunCancelledError
    """
    if run.state == "failed":
        raise RunFailedError(f"run {run.id} failed: {run.reason}", hint=f"farshore runs logs {run.id}")
    if run.state == "interrupted":
        raise RunFailedError(f"run {run.id} was interrupted: {run.reason}", hint=f"farshore runs resume {run.id}")
    if run.state == "cancelled":
        raise RunCancelledError(f"run {run.id} was cancelled{': ' if run.reason else ''}{run.reason}")


def check_items(found: Mapping[str, Any], where: str) -> None:
    """Raise an error if items of a finished queue have failed; ``where`` names the run.

    Raises
    ------
    RunFailedError
    """
    if count := found.get("failed_items"):
        reason = f": {found['why']}" if found.get("why") else ""
        raise RunFailedError(f"{where}: {count} of {found.get('items', '?')} items failed{reason}")


def progress_values(run: RunInfo) -> dict[str, Any]:
    """Return the values reported with the run's last progress."""
    return _object(run.progress_json)


def result(run: RunInfo) -> dict[str, Any]:
    """Return the run's result; empty before it has one."""
    return _object(run.result_json)


def logs(admin: AdminClient, run_id: str, *, wait: bool) -> Iterator[str]:
    """Yield the lines of a run's log; with ``wait`` until the run ends."""
    for event in admin.follow(run_id, follow=wait, logs=True):
        yield from event.log


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}
