"""The pages: what each one shows, gathered anew for every request and for every look of a stream."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from ...core.errors import NotFoundError
from ...reports.charts import Chart
from ...reports.compare import Comparison, compare_runs, score_over_bytes
from ...reports.page import told
from ...reports.run_report import WAYS, RunReport
from ...runs.states import ENDED, FOLLOWERS
from ...runs.store import RunRow
from .query_params import Paging, QueryParams
from .run_detail import RunDetails, RunSight
from .snapshot import NodeView, Snapshot, SnapshotCache

RUN_STATES = tuple(FOLLOWERS)
NODE_STATES = ("connected", "lost", "revoked")
SORTS = ("name", "work", "up", "down", "peer", "cpu", "seen")
_RUNS, _NODES, _COMPARED = 25, 100, 6
#: Comparisons that are kept for the next look at them.
_KEPT = 4

Values = Mapping[str, Any]
Compared = tuple[Comparison, list[Chart]]


class Pages:
    """What the templates are filled in with.

    Parameters
    ----------
    watch : Watch
    """

    def __init__(self, watch: SnapshotCache) -> None:
        self._watch = watch
        self._desks = RunDetails()
        self._reading = asyncio.Semaphore(1)
        self._known: OrderedDict[tuple[str, ...], tuple[Sequence[RunReport], Compared]] = OrderedDict()

    async def runs(self, request: Request) -> Values:
        """The runs, newest first."""
        asked, snapshot = QueryParams.of(request, RUN_STATES), await self._watch.snapshot()
        rows, paging = await asyncio.to_thread(self._run_rows, asked)
        views = await self._watch.views(rows)
        speeds = {way: sum(view.rates.get(way, 0.0) for view in snapshot.open.values()) for way in WAYS}
        shown = _ways([speeds, *(view.bytes or {} for view in views)])
        values = {"snapshot": snapshot, "views": views, "paging": paging, "asked": asked}
        return {**values, "speeds": speeds, "ways": shown}

    async def nodes(self, request: Request) -> Values:
        """The nodes."""
        asked, snapshot = QueryParams.of(request, NODE_STATES, SORTS), await self._watch.snapshot()
        wanted = [node for node in snapshot.nodes if _wanted(node, asked)]
        wanted.sort(key=_order(asked.sort))
        paging = Paging.of(asked.page, len(wanted), _NODES)
        shown = wanted[paging.first - 1 if wanted else 0 : paging.last]
        values = {"snapshot": snapshot, "nodes": shown, "paging": paging, "asked": asked}
        return {**values, "counts": _counts(snapshot), "ways": _ways([node.rates for node in snapshot.nodes])}

    async def run(self, request: Request) -> Values:
        """One run in depth."""
        row, snapshot = await self._row(request.path_params["run"]), await self._watch.snapshot()
        (view,) = await self._watch.views([row])
        sight: RunSight = await asyncio.to_thread(self._desks.of(view).look, view.row.state)
        cohort = set(view.row.nodes)
        nodes = [node for node in snapshot.nodes if node.name in cohort]
        values = {"snapshot": snapshot, "view": view, "sight": sight, "nodes": nodes, "ended": view.row.state in ENDED}
        values["ways"] = _ways([view.rates, *(node.rates for node in nodes)])
        told_of = told(sight.report) if sight.report is not None else {"report": None}
        return {**values, **told_of, "charts": sight.charts, "data": [chart.as_dict() for chart in sight.charts]}

    async def compare(self, request: Request) -> Values:
        """Runs side by side, or those to choose from."""
        ids = list(dict.fromkeys(request.query_params.getlist("run")))[:_COMPARED]
        snapshot = await self._watch.snapshot()
        rows = [await self._row(run_id) for run_id in ids]
        choice, _ = await asyncio.to_thread(lambda: self._watch.store.page(limit=_RUNS))
        values = {"snapshot": snapshot, "choice": choice, "chosen": ids, "trouble": "", "found": None}
        values |= {"charts": [], "data": [], "most": _COMPARED, "behind": False}
        if len(rows) < 2:
            return {**values, "live": ""}
        looks = [partial(self._desks.of(view).look, view.row.state) for view in await self._watch.views(rows)]
        async with self._reading:  # ledgers are read: one page at a time
            sights = await asyncio.to_thread(lambda: [look() for look in looks])
        if trouble := next((sight.trouble for sight in sights if sight.report is None), ""):
            return {**values, "trouble": trouble}
        found, drawn = await asyncio.to_thread(self._compared, ids, [s.report for s in sights if s.report is not None])
        values |= {"found": found, "behind": any(sight.behind for sight in sights)}
        return {**values, "charts": drawn, "data": [chart.as_dict() for chart in drawn]}

    # ---- below ---------------------------------------------------------------------------------------------------

    async def _row(self, run_id: str) -> RunRow:
        try:
            return await asyncio.to_thread(self._watch.store.run, run_id)
        except NotFoundError as error:
            raise HTTPException(404, error.message) from error

    def _compared(self, ids: Sequence[str], reports: Sequence[RunReport]) -> Compared:
        """Side by side, and drawn; as long as no report is a new one, what was found before."""
        before, compared = self._known.pop(tuple(ids), ((), None))
        if compared is None or any(a is not b for a, b in zip(before, reports, strict=True)):
            found = compare_runs(reports)
            compared = found, [chart] if (chart := score_over_bytes(found)) else []
        self._known[tuple(ids)] = reports, compared
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return compared

    def _run_rows(self, asked: QueryParams) -> tuple[Sequence[RunRow], Paging]:
        def page(number: int) -> tuple[list[RunRow], int]:
            return self._watch.store.page(
                state=asked.state, containing=asked.containing, limit=_RUNS, offset=(number - 1) * _RUNS
            )

        rows, count = page(asked.page)
        paging = Paging.of(asked.page, count, _RUNS)
        return (rows if paging.page == asked.page else page(paging.page)[0]), paging


def _wanted(node: NodeView, asked: QueryParams) -> bool:
    word = asked.containing.lower()
    named = not word or word in node.name.lower() or word in node.run or any(word in name.lower() for name in node.data)
    return named and (not asked.state or node.state == asked.state)


def _order(sort: str) -> Callable[[NodeView], Any]:
    orders: dict[str, Callable[[NodeView], Any]] = {
        "work": lambda node: (not node.run, node.run),
        "up": lambda node: -node.rates.get("up", 0.0),
        "down": lambda node: -node.rates.get("down", 0.0),
        "peer": lambda node: -node.rates.get("peer", 0.0),
        "cpu": lambda node: -node.cpu,
        "seen": lambda node: -node.seen,
    }
    first = orders.get(sort)
    return lambda node: (first(node) if first else 0, _natural(node.name))


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :][:18] or 0), name


def _ways(counts: Iterable[Mapping[str, float]]) -> list[str]:
    """The directions that are shown: from node to node only where anything goes there."""
    peers = any(count.get("peer") for count in counts)
    return [way for way in WAYS if way != "peer" or peers]


def _counts(snapshot: Snapshot) -> dict[str, int]:
    counts = dict.fromkeys(NODE_STATES, 0)
    for node in snapshot.nodes:
        counts[node.state] = counts.get(node.state, 0) + 1
    return {**counts, "working": sum(bool(node.run) for node in snapshot.nodes)}
