"""The pages: what each one shows, gathered anew for every request and for every look of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ...core.errors import FarshoreError, NotFoundError
from ...reports.page import told
from ...reports.run_report import RunReport, read_report
from ...reports.side_by_side import score_over_bytes, side_by_side
from ...runs.directory import RunDirectory
from ...runs.states import ENDED, FOLLOWERS
from ...runs.store import RunRow
from .asked import Asked, Paging
from .desk import Desks, RunSight
from .watch import NodeView, Snapshot, Watch

RUN_STATES = tuple(FOLLOWERS)
NODE_STATES = ("connected", "lost", "revoked")
SORTS = ("name", "work", "up", "down", "cpu", "seen")
_RUNS, _NODES, _COMPARED = 25, 100, 6

Values = Mapping[str, Any]


class Pages:
    """What the templates are filled in with.

    Parameters
    ----------
    watch : Watch
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._desks = Desks()
        self._reading = asyncio.Semaphore(1)

    async def runs(self, request: Request) -> Values:
        """The runs, newest first."""
        asked, snapshot = Asked.of(request, RUN_STATES), await self._watch.snapshot()
        rows, paging = await asyncio.to_thread(self._run_rows, asked)
        views = await self._watch.views(rows)
        speeds = {side: sum(getattr(view, side) for view in snapshot.open.values()) for side in ("up", "down")}
        return {"snapshot": snapshot, "views": views, "paging": paging, "asked": asked, "speeds": speeds}

    async def nodes(self, request: Request) -> Values:
        """The nodes."""
        asked, snapshot = Asked.of(request, NODE_STATES, SORTS), await self._watch.snapshot()
        wanted = [node for node in snapshot.nodes if _wanted(node, asked)]
        wanted.sort(key=_order(asked.sort))
        paging = Paging.of(asked.page, len(wanted), _NODES)
        shown = wanted[paging.first - 1 if wanted else 0 : paging.last]
        return {"snapshot": snapshot, "nodes": shown, "paging": paging, "asked": asked, "counts": _counts(snapshot)}

    async def run(self, request: Request) -> Values:
        """One run in depth."""
        row, snapshot = await self._row(request.path_params["run"]), await self._watch.snapshot()
        (view,) = await self._watch.views([row])
        sight: RunSight = await asyncio.to_thread(self._desks.of(view).look, view.row.state)
        cohort = set(view.row.nodes)
        nodes = [node for node in snapshot.nodes if node.name in cohort]
        values = {"snapshot": snapshot, "view": view, "sight": sight, "nodes": nodes, "ended": view.row.state in ENDED}
        told_of = told(sight.report) if sight.report is not None else {"report": None}
        return {**values, **told_of, "charts": sight.charts, "data": [chart.as_dict() for chart in sight.charts]}

    async def compare(self, request: Request) -> Values:
        """Runs side by side, or those to choose from."""
        ids = list(dict.fromkeys(request.query_params.getlist("run")))[:_COMPARED]
        snapshot = await self._watch.snapshot()
        rows = [await self._row(run_id) for run_id in ids]
        choice, _ = await asyncio.to_thread(lambda: self._watch.store.page(limit=_RUNS))
        values = {"snapshot": snapshot, "choice": choice, "chosen": ids, "trouble": "", "found": None}
        values |= {"charts": [], "data": [], "most": _COMPARED}
        if len(rows) < 2:
            return values
        try:
            async with self._reading:  # whole ledgers are read: one page at a time
                found = side_by_side(await asyncio.to_thread(lambda: [_report(row) for row in rows]))
        except FarshoreError as error:
            return {**values, "trouble": error.message}
        drawn = [chart] if (chart := score_over_bytes(found)) else []
        return {**values, "found": found, "charts": drawn, "data": [chart.as_dict() for chart in drawn]}

    # ---- below ---------------------------------------------------------------------------------------------------

    async def _row(self, run_id: str) -> RunRow:
        try:
            return await asyncio.to_thread(self._watch.store.run, run_id)
        except NotFoundError as error:
            raise HTTPException(404, error.message) from error

    def _run_rows(self, asked: Asked) -> tuple[Sequence[RunRow], Paging]:
        def page(number: int) -> tuple[list[RunRow], int]:
            return self._watch.store.page(
                state=asked.state, containing=asked.containing, limit=_RUNS, offset=(number - 1) * _RUNS
            )

        rows, count = page(asked.page)
        paging = Paging.of(asked.page, count, _RUNS)
        return (rows if paging.page == asked.page else page(paging.page)[0]), paging


def _report(row: RunRow) -> RunReport:
    return read_report(RunDirectory.open(Path(row.directory)))


def _wanted(node: NodeView, asked: Asked) -> bool:
    word = asked.containing.lower()
    named = not word or word in node.name.lower() or word in node.run or any(word in name.lower() for name in node.data)
    return named and (not asked.state or node.state == asked.state)


def _order(sort: str) -> Callable[[NodeView], Any]:
    orders: dict[str, Callable[[NodeView], Any]] = {
        "work": lambda node: (not node.run, node.run),
        "up": lambda node: -node.up,
        "down": lambda node: -node.down,
        "cpu": lambda node: -node.cpu,
        "seen": lambda node: -node.seen,
    }
    first = orders.get(sort)
    return lambda node: (first(node) if first else 0, _natural(node.name))


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :][:18] or 0), name


def _counts(snapshot: Snapshot) -> dict[str, int]:
    counts = dict.fromkeys(NODE_STATES, 0)
    for node in snapshot.nodes:
        counts[node.state] = counts.get(node.state, 0) + 1
    return {**counts, "working": sum(bool(node.run) for node in snapshot.nodes)}
