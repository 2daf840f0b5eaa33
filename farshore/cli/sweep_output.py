"""The results of a sweep: a table with the best cell marked, files, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, FarshoreError
from .output import emit, note, say, table

if TYPE_CHECKING:
    from ..reports.sweep_table import CellSummary, SweepTable

_PICTURES = (".png", ".svg", ".pdf")
#: Most metrics in the table besides the compared one, and most cells.
_MOST_METRICS, _MOST_CELLS = 4, 200


@dataclass(frozen=True)
class Outputs:
    """What is printed and written at the end of a sweep.

    Attributes
    ----------
    csv, json, picture : Path or None
        Files.
    as_json : bool
        Print JSON instead of the table.
    """

    csv: Path | None = None
    json: Path | None = None
    picture: Path | None = None
    as_json: bool = False

    def check(self) -> None:
        """Check, before anything runs, that the files can be written.

        Raises
        ------
        ConfigError
            A folder does not exist, or the picture's format is unknown.
        MissingExtraError
            matplotlib, which draws pictures, is not installed.
        """
        for path in (self.csv, self.json, self.picture):
            if path is not None and not path.expanduser().absolute().parent.is_dir():
                raise ConfigError(f"the folder of {path} does not exist", hint="make it, or choose another file")
        if self.picture is not None:
            if self.picture.suffix not in _PICTURES:
                raise ConfigError(f"--picture {self.picture}: unknown format", hint=f"use {', '.join(_PICTURES)}")
            from ..core.errors import MissingExtraError
            from ..core.packages import missing

            if missing(["matplotlib"]):
                raise MissingExtraError("matplotlib", "plots")

    def show(self, found: Mapping[str, Any] | None, directory: Path | None) -> None:
        """Print the table and write the files.

        Parameters
        ----------
        found : Mapping or None
            As of :meth:`~farshore.reports.sweep_table.SweepTable.as_dict`; None if it was too long for the server's
            answer.
        directory : Path or None
            Of the run, if it is on this machine.

        Raises
        ------
        FarshoreError
            A file cannot be written, or no item has the metric that was asked for.
        """
        from ..reports.sweep_table import SweepTable

        if found is None:
            note("the results are in the run's directory on the server: farshore runs export")
            return
        swept = SweepTable.from_dict(found)
        self._write(swept)
        if self.as_json:
            emit({"event": "swept", **summary(swept), "directory": directory and str(directory)})
            return
        print_cells(swept)
        for row in swept.failed[:5]:
            note(f"failed: {_name(row.cell)} seed {row.seed}: {row.error}")
        if directory is not None:
            say(f"results in {directory}")

    def _write(self, swept: SweepTable) -> None:
        from ..core.errors import StorageError
        from ..reports.sweep_plots import draw_sweep
        from ..runs.files import write_json

        if self.json is not None:
            write_json(self.json.expanduser(), summary(swept))
        if self.csv is not None:
            try:
                self.csv.expanduser().write_text(swept.csv(), encoding="utf-8")
            except OSError as error:
                raise StorageError(f"cannot write {self.csv}: {error.strerror}") from error
        if self.picture is not None:
            draw_sweep(swept, self.picture.expanduser())


def summary(swept: SweepTable) -> dict[str, Any]:
    """Return cells and items as JSON-able values."""
    try:
        compared, ranked = swept.compared, swept.ranked()
    except FarshoreError:
        compared, ranked = "", []
    cells = [asdict(cell) for cell in swept.cells]
    best = dict(ranked[0].cell) if ranked else None
    return {**swept.as_dict(), "compared": compared, "best_cell": best, "cells": cells}


def print_cells(swept: SweepTable) -> None:
    """Print mean and standard deviation of each cell; the best one is marked with ``*``."""
    name = swept.compared
    ranked = swept.ranked()
    others = [metric for metric in swept.varying if metric != name][:_MOST_METRICS]
    halved = any(cell.budget is not None for cell in swept.cells)
    failed = any(cell.failed for cell in swept.cells)
    columns = ["", *swept.keys, *(["budget"] if halved else []), "seeds", *([name] if name else []), *others]
    rows = []
    for cell in swept.cells[:_MOST_CELLS]:
        row = ["*" if ranked and cell is ranked[0] else "", *_values(cell, swept)]
        row += [str(cell.budget)] if halved else []
        row += [str(cell.seeds), *([_spread(cell, name)] if name else []), *(_spread(cell, other) for other in others)]
        rows.append([*row, *([str(cell.failed or "")] if failed else [])])
    table([*columns, *(["failed"] if failed else [])], rows, "no items")
    if len(swept.cells) > _MOST_CELLS:
        note(f"{len(swept.cells) - _MOST_CELLS} more cells are in the files")
    if ranked:
        best = ranked[0]
        say(f"best: {_name(best.cell) or swept.method}, {name} {_spread(best, name)}")


def _values(cell: CellSummary, swept: SweepTable) -> list[str]:
    from ..reports.sweep_table import text_of

    return [text_of(cell.cell[key]) for key in swept.keys]


def _name(cell: Mapping[str, Any]) -> str:
    from ..reports.sweep_table import text_of

    return ", ".join(f"{key}={text_of(value)}" for key, value in cell.items())


def _spread(cell: CellSummary, name: str) -> str:
    if name not in cell.mean:
        return "–"
    sd = f" ± {cell.sd[name]:.2g}" if name in cell.sd else ""
    return f"{cell.mean[name]:.5g}{sd}"
