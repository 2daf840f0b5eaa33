"""``farshore report``: a run's communication as tables, an HTML page, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say, show
from .run_lookup import Home, RunName, find_run


def report(
    run: RunName,
    target: Annotated[
        list[float] | None, typer.Option(help="Report the bytes to reach this score; repeatable.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page with charts.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the totals as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the totals as Parquet.")] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Report what a run sent: by kind, round, node and encoding, against baselines, with times on typical links.

    Unfinished and failed runs are reported as far as they got.
    """
    from ..reports.run_report import read_report

    found = read_report(find_run(run, home), target or ())
    if html is not None:
        from ..reports.page import write_page

        write_page(found, html)
    if csv is not None or parquet is not None:
        from ..reports.sums import write_csv, write_parquet

        for path, write in ((csv, write_csv), (parquet, write_parquet)):
            if path is not None:
                write(found.account, path)
    if json_:
        emit(found.as_dict())
        return
    from ..reports.report_tables import report_tables

    why = f" ({found.reason})" if found.reason else ""
    say(f"run {found.info['id']}: {found.info['workload']}, {found.state}{why}, seed {found.info['seed']}\n")
    for table in report_tables(found):
        show(table)
        say("")
    for name, path in (("page", html), ("CSV", csv), ("Parquet", parquet)):
        if path is not None:
            say(f"{name:<8} {path}")
