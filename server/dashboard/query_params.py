"""Validated query parameters of the list pages: filter, sort order and page."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request

_MAX_LENGTH = 80
_MAX_PAGE = 1_000_000


@dataclass(frozen=True, slots=True)
class QueryParams:
    """Filter, sort order and page of a list.

    Attributes
    ----------
    state : str
        Show only entries in this state; empty: all.
    containing : str
        Show only entries that contain this text; empty: all.
    sort : str
        Sort column; empty: default order.
    page : int
        Page number, starting at 1.
    """

    state: str = ""
    containing: str = ""
    sort: str = ""
    page: int = 1

    @classmethod
    def from_request(cls, request: Request, states: tuple[str, ...], sorts: tuple[str, ...] = ()) -> QueryParams:
        """Parse the query of a request; invalid values are ignored."""
        given = request.query_params
        state, sort, page = given.get("state", ""), given.get("sort", ""), given.get("page", "1")
        return cls(
            state if state in states else "",
            given.get("q", "")[:_MAX_LENGTH].strip(),
            sort if sort in sorts else "",
            min(int(page), _MAX_PAGE) if page.isascii() and page.isdecimal() and len(page) < 8 and int(page) else 1,
        )

    def query(self, **changes: str | int) -> str:
        """Format as a query string with ``changes`` applied; empty, or starts with ``?``."""
        own: dict[str, str | int] = {"state": self.state, "q": self.containing, "sort": self.sort, "page": self.page}
        params = {name: value for name, value in {**own, **changes}.items() if value and (name, value) != ("page", 1)}
        return f"?{urlencode(params)}" if params else ""


@dataclass(frozen=True, slots=True)
class Paging:
    """The displayed page of a list: page number, number of pages, first and last entry (from 1), number of entries."""

    page: int
    pages: int
    first: int
    last: int
    count: int

    @classmethod
    def of(cls, page: int, count: int, length: int) -> Paging:
        """Page number ``page`` of ``count`` entries, ``length`` per page; the last page if there are fewer."""
        pages = max(1, -(-count // length))
        page = min(page, pages)
        return cls(page, pages, min(count, (page - 1) * length + 1), min(count, page * length), count)
