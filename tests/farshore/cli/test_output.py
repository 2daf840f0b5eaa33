"""What peers send reaches the terminal as text: no escape sequences, no markup."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from farshore.cli import output, progress
from farshore.cli.failures import report_error
from farshore.core.errors import RunFailedError
from farshore.reports.tables import plain_table
from farshore.server.server_log import server_log

HOSTILE = "\x1b[2J\x1b]52;c;ZXZpbA==\x07[bold]x[/bold]\u202e"
SHOWN = r"\x1b[2J\x1b]52;c;ZXZpbA==\x07[bold]x[/bold]\u202e"


def say_it() -> None:
    output.say(HOSTILE)


def note_it() -> None:
    output.note(HOSTILE)


def table_it() -> None:
    output.table(("name", "reason"), [("a", HOSTILE)], "none")


def report_it() -> None:
    report_error(RunFailedError(HOSTILE, hint=HOSTILE))


def progress_it() -> None:
    progress.PlainDisplay("run").show(progress.Meter().read(0, 0, {}, 0.0, "waiting", HOSTILE))


@pytest.mark.parametrize("act", [say_it, note_it, table_it, report_it, progress_it])
@pytest.mark.parametrize("terminal", [False, True])
def test_escape_sequences_are_shown_not_sent(
    act: Callable[[], None], terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")  # no styles of our own
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    act()
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert SHOWN in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_cells_of_report_tables_are_text() -> None:
    table = plain_table("title", ["kind"], ["bytes"])
    table.add_row(HOSTILE, "1")
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    assert SHOWN in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_the_live_progress_shows_reasons_as_text() -> None:
    shown = progress.LiveDisplay("run")
    shown.show(progress.Meter().read(0, 0, {}, 0.0, "waiting", HOSTILE))
    assert shown._bar.tasks[0].fields["figures"] == f"waiting: {SHOWN}"


def test_the_servers_log_shows_escapes(tmp_path: Path) -> None:
    with server_log(tmp_path):
        logging.getLogger("farshore.test").warning("node says %s", HOSTILE)
    assert SHOWN in (tmp_path / "server.log").read_text()
