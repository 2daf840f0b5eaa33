"""Loads the template variables of each page, for every request and for every update of an event stream."""

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
from ...reports.page import template_values
from ...reports.run_report import DIRECTIONS, RunReport
from ...runs.states import ENDED, TRANSITIONS
from ...runs.store import RunRow
from .query_params import Paging, QueryParams
from .run_detail import RunDetailCache, RunDetailView
from .snapshot import NodeView, Snapshot, SnapshotCache

RUN_STATES = tuple(TRANSITIONS)
NODE_STATES = ("connected", "lost", "revoked", "contested")
SORTS = ("name", "work", "up", "down", "peer", "cpu", "seen")
_RUNS_PER_PAGE, _NODES_PER_PAGE, _MAX_COMPARED = 25, 100, 6
#: Number of comparisons that are cached.
_MAX_CACHED = 4

Values = Mapping[str, Any]
CachedComparison = tuple[Comparison, list[Chart]]


class Pages:
    """Loads the template variables of each page.

    Parameters
    ----------
    snapshots : SnapshotCache
    """

    def __init__(self, snapshots: SnapshotCache) -> None:
        self._snapshots = snapshots
        self._details = RunDetailCache()
        self._read_lock = asyncio.Semaphore(1)
        self._comparisons: OrderedDict[tuple[str, ...], tuple[Sequence[RunReport], CachedComparison]] = OrderedDict()

    async def runs(self, request: Request) -> Values:
        """Variables of the list of runs, newest first."""
        params, snapshot = QueryParams.from_request(request, RUN_STATES), await self._snapshots.snapshot()
        rows, paging = await asyncio.to_thread(self._run_rows, params)
        views = await self._snapshots.views(rows)
        rates = {name: sum(view.rates.get(name, 0.0) for view in snapshot.open.values()) for name in DIRECTIONS}
        directions = _directions([rates, *(view.bytes or {} for view in views)])
        values = {"snapshot": snapshot, "views": views, "paging": paging, "params": params}
        return {**values, "rates": rates, "directions": directions}

    async def nodes(self, request: Request) -> Values:
        """Variables of the list of nodes."""
        params, snapshot = QueryParams.from_request(request, NODE_STATES, SORTS), await self._snapshots.snapshot()
        matching = [node for node in snapshot.nodes if _matches(node, params)]
        matching.sort(key=_sort_key(params.sort))
        paging = Paging.of(params.page, len(matching), _NODES_PER_PAGE)
        nodes = matching[paging.first - 1 if matching else 0 : paging.last]
        directions = _directions([node.rates for node in snapshot.nodes])
        values = {"snapshot": snapshot, "nodes": nodes, "paging": paging, "params": params}
        return {**values, "counts": _counts(snapshot), "directions": directions}

    async def run(self, request: Request) -> Values:
        """Variables of the page of one run."""
        row, snapshot = await self._row(request.path_params["run"]), await self._snapshots.snapshot()
        (view,) = await self._snapshots.views([row])
        detail: RunDetailView = await asyncio.to_thread(self._details.get(view).refresh, view.row.state)
        cohort = set(view.row.nodes)
        nodes = [node for node in snapshot.nodes if node.name in cohort]
        values = {"snapshot": snapshot, "view": view, "detail": detail, "nodes": nodes}
        values |= {"ended": view.row.state in ENDED}
        values["directions"] = _directions([view.rates, *(node.rates for node in nodes)])
        report_values = template_values(detail.report) if detail.report is not None else {"report": None}
        data = [chart.as_dict() for chart in detail.charts]
        return {**values, **report_values, "charts": detail.charts, "data": data}

    async def compare(self, request: Request) -> Values:
        """Variables of a comparison of runs, or of the form to select them."""
        ids = list(dict.fromkeys(request.query_params.getlist("run")))[:_MAX_COMPARED]
        snapshot = await self._snapshots.snapshot()
        rows = [await self._row(run_id) for run_id in ids]
        candidates, _ = await asyncio.to_thread(lambda: self._snapshots.store.page(limit=_RUNS_PER_PAGE))
        values = {"snapshot": snapshot, "candidates": candidates, "selected": ids, "error": "", "comparison": None}
        values |= {"charts": [], "data": [], "limit": _MAX_COMPARED, "behind": False}
        if len(rows) < 2:
            return {**values, "live": ""}
        views = await self._snapshots.views(rows)
        refreshes = [partial(self._details.get(view).refresh, view.row.state) for view in views]
        async with self._read_lock:  # ledgers are read for one comparison at a time
            details = await asyncio.to_thread(lambda: [refresh() for refresh in refreshes])
        if error := next((detail.error for detail in details if detail.report is None), ""):
            return {**values, "error": error}
        reports = [detail.report for detail in details if detail.report is not None]
        comparison, charts = await asyncio.to_thread(self._compare, ids, reports)
        values |= {"comparison": comparison, "behind": any(detail.behind for detail in details)}
        return {**values, "charts": charts, "data": [chart.as_dict() for chart in charts]}

    # ---- helpers -------------------------------------------------------------------------------------------------

    async def _row(self, run_id: str) -> RunRow:
        try:
            return await asyncio.to_thread(self._snapshots.store.run, run_id)
        except NotFoundError as error:
            raise HTTPException(404, error.message) from error

    def _compare(self, ids: Sequence[str], reports: Sequence[RunReport]) -> CachedComparison:
        """Compare and chart runs, or return the cached comparison if none of the reports has changed."""
        previous, cached = self._comparisons.pop(tuple(ids), ((), None))
        if cached is None or any(a is not b for a, b in zip(previous, reports, strict=True)):
            comparison = compare_runs(reports)
            cached = comparison, [chart] if (chart := score_over_bytes(comparison)) else []
        self._comparisons[tuple(ids)] = reports, cached
        if len(self._comparisons) > _MAX_CACHED:
            self._comparisons.popitem(last=False)
        return cached

    def _run_rows(self, params: QueryParams) -> tuple[Sequence[RunRow], Paging]:
        def page(number: int) -> tuple[list[RunRow], int]:
            return self._snapshots.store.page(
                state=params.state,
                containing=params.containing,
                limit=_RUNS_PER_PAGE,
                offset=(number - 1) * _RUNS_PER_PAGE,
            )

        rows, count = page(params.page)
        paging = Paging.of(params.page, count, _RUNS_PER_PAGE)
        return (rows if paging.page == params.page else page(paging.page)[0]), paging


def _matches(node: NodeView, params: QueryParams) -> bool:
    text = params.containing.lower()
    found = not text or text in node.name.lower() or text in node.run or any(text in name.lower() for name in node.data)
    return found and (not params.state or node.state == params.state)


def _sort_key(sort: str) -> Callable[[NodeView], Any]:
    keys: dict[str, Callable[[NodeView], Any]] = {
        "work": lambda node: (not node.run, node.run),
        "up": lambda node: -node.rates.get("up", 0.0),
        "down": lambda node: -node.rates.get("down", 0.0),
        "peer": lambda node: -node.rates.get("peer", 0.0),
        "cpu": lambda node: -node.cpu,
        "seen": lambda node: -node.last_seen,
    }
    first = keys.get(sort)
    return lambda node: (first(node) if first else 0, _natural_key(node.name))


def _natural_key(name: str) -> tuple[str, int, str]:
    """Sort key that orders numbers by value: ``node-2`` before ``node-10``."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :][:18] or 0), name


def _directions(counts: Iterable[Mapping[str, float]]) -> list[str]:
    """The directions to display; traffic between nodes only if there is any."""
    has_peers = any(count.get("peer") for count in counts)
    return [name for name in DIRECTIONS if name != "peer" or has_peers]


def _counts(snapshot: Snapshot) -> dict[str, int]:
    counts = dict.fromkeys(NODE_STATES, 0)
    for node in snapshot.nodes:
        counts[node.state] = counts.get(node.state, 0) + 1
    return {**counts, "working": sum(bool(node.run) for node in snapshot.nodes)}
