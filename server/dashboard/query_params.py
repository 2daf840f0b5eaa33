"""What a request asks for, within bounds: a page of a list, a filter, an order."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request

_LONGEST = 80
_PAGES = 1_000_000


@dataclass(frozen=True, slots=True)
class QueryParams:
    """A filter and a place in a list.

    Attributes
    ----------
    state, containing, sort : str
        Empty = all, all, and the list's own order.
    page : int
        From 1 on.
    """

    state: str = ""
    containing: str = ""
    sort: str = ""
    page: int = 1

    @classmethod
    def of(cls, request: Request, states: tuple[str, ...], sorts: tuple[str, ...] = ()) -> QueryParams:
        """Read a request; what it may not ask for counts as not asked."""
        given = request.query_params
        state, sort, page = given.get("state", ""), given.get("sort", ""), given.get("page", "1")
        return cls(
            state if state in states else "",
            given.get("q", "")[:_LONGEST].strip(),
            sort if sort in sorts else "",
            min(int(page), _PAGES) if page.isascii() and page.isdecimal() and len(page) < 8 and int(page) else 1,
        )

    def query(self, **changes: str | int) -> str:
        """As a query string, with some things changed; begins with ``?`` or is empty."""
        mine: dict[str, str | int] = {"state": self.state, "q": self.containing, "sort": self.sort, "page": self.page}
        found = {name: value for name, value in {**mine, **changes}.items() if value and (name, value) != ("page", 1)}
        return f"?{urlencode(found)}" if found else ""


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is shown; numbers from 1 on."""

    page: int
    pages: int
    first: int
    last: int
    count: int

    @classmethod
    def of(cls, page: int, count: int, length: int) -> Paging:
        """The ``page``-th part of ``count`` things, ``length`` at a time; the last part where there are fewer."""
        pages = max(1, -(-count // length))
        page = min(page, pages)
        return cls(page, pages, min(count, (page - 1) * length + 1), min(count, page * length), count)
