"""Runs as messages for submitters: in full, as summaries of bounded size, and as changes of a summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..core.bounds import MAX_CONFIG, MAX_ERROR, MAX_RESULT, cut, cut_json
from ..core.json_text import to_json
from ..core.nodes import DEFAULT_ROLE
from ..proto import control_pb2 as pb

if TYPE_CHECKING:
    from .run import Run

#: Bytes and items of a page of a list. gRPC's limit of a message is 4 MiB.
PAGE_BYTES, PAGE_ITEMS = 1 << 20, 500
_SUMMARY_BYTES, _FULL_BYTES = PAGE_BYTES, (4 << 20) - (64 << 10)

Item = TypeVar("Item")
Entry = TypeVar("Entry", pb.RunInfo, pb.NodeInfo)


def summary(run: Run) -> pb.RunInfo:
    """Return a run without its configuration and its result, at most ``PAGE_BYTES`` long."""
    return _fit(
        pb.RunInfo(
            id=run.id,
            workload=run.workload,
            state=run.state,
            reason=cut(run.reason, MAX_ERROR),
            created=run.created,
            started=run.started,
            ended=run.ended,
            nodes=run.nodes,
            epoch=run.epoch,
            directory=str(run.directory),
            done=run.done,
            total=run.total,
            progress_json=to_json(run.progress),
            roles={n: r for n, r in run.cohort.items() if r != DEFAULT_ROLE},
        ),
        _SUMMARY_BYTES,
    )


def full(run: Run) -> pb.RunInfo:
    """Return a run with its configuration and its result; what exceeds gRPC's limit is replaced by its length."""
    info = summary(run)
    info.result_json = cut_json(run.result_json, MAX_RESULT, "result.json in the run's directory")
    room = min(MAX_CONFIG, _FULL_BYTES - info.ByteSize())
    config = run.config_json
    if len(config.encode()) > room:
        config = cut_json(config, room // 6, "run.json in the run's directory")  # six bytes: \uXXXX of a character
    info.config_json = config
    return info


def changes(before: pb.RunInfo, after: pb.RunInfo) -> pb.RunEvent:
    """Return an event with the fields of ``after`` that differ from ``before``."""
    event = pb.RunEvent()
    for field in pb.RunInfo.DESCRIPTOR.fields:
        if getattr(before, field.name) != getattr(after, field.name):
            event.changed.append(field.name)
    if event.changed:
        event.run.CopyFrom(after)
        for field in pb.RunInfo.DESCRIPTOR.fields:
            if field.name not in event.changed:
                event.run.ClearField(field.name)
    return event


def page(items: Sequence[Item], start: int, limit: int, entry: Callable[[Item], Entry]) -> tuple[list[Entry], int]:
    """Return the entries of a page of ``items`` from ``start``, and where the next page starts; 0 = there is none.

    Parameters
    ----------
    limit : int
        Most entries; 0 = as many as fit.
    entry : callable
        Builds the message of an item.
    """
    found: list[Entry] = []
    size = 0
    for item in items[start : start + min(limit or PAGE_ITEMS, PAGE_ITEMS)]:
        message = entry(item)
        size += message.ByteSize()
        if found and size > PAGE_BYTES:
            break
        found.append(message)
    end = start + len(found)
    return found, end if found and end < len(items) else 0


def _fit(info: pb.RunInfo, limit: int) -> pb.RunInfo:
    """Leave out progress, roles and nodes of a run that is larger than ``limit`` bytes, in this order."""
    for name in ("progress_json", "roles"):
        if info.ByteSize() <= limit:
            return info
        info.ClearField(name)
    while info.ByteSize() > limit and len(info.nodes) > 1:
        count, kept = len(info.nodes), list(info.nodes[: len(info.nodes) // 2])
        del info.nodes[:]
        info.nodes.extend([*kept, f"… ({count - len(kept):,} more)"])
    return info
