"""``farshore compare``: compare the communication and results of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say, show
from .run_lookup import Home, find_run


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Ids of runs, or their directories.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page with a chart.")] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Compare runs: bytes sent, score per byte, and differing settings."""
    from ..reports.compare import compare_runs, comparison_tables
    from ..reports.run_report import read_report

    found = compare_runs([read_report(find_run(run, home)) for run in runs])
    if html is not None:
        from ..reports.page import write_comparison

        write_comparison(found, html)
    if json_:
        emit(found.as_dict())
        return
    for table in comparison_tables(found):
        show(table)
        say("")
    if html is not None:
        say(f"page  {html}")
