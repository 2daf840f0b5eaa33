"""Every failure is one line on standard error and an exit code; a traceback only with ``--debug``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from farshore.cli import main as cli
from farshore.cli.failures import report_error
from farshore.core.errors import ConfigError, ExitCode, FarshoreError


def every_error() -> list[type[FarshoreError]]:
    return [kind for kind in FarshoreError.__subclasses__() if kind.__name__ != "MissingExtraError"]


@pytest.mark.parametrize("kind", every_error())
def test_each_error_has_its_exit_code(kind: type[FarshoreError], capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(kind("it broke at node a", hint="fix it")) == kind.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["error: it broke at node a", "  try: fix it"]


def test_markup_in_a_message_is_literal_and_line_breaks_become_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(ConfigError("no file [bold]x[/bold]\nand more"))
    assert capsys.readouterr().err == "error: no file [bold]x[/bold] and more\n"


def test_an_unexpected_error_is_one_line_and_a_traceback_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        raise ZeroDivisionError("by zero")
    assert report_error(raised.value) == ExitCode.INTERNAL
    err = capsys.readouterr().err
    assert "Traceback" not in err
    found = re.search(r"the traceback is in (\S+)", err)
    assert found
    saved = Path(found[1])
    assert "ZeroDivisionError: by zero" in saved.read_text()
    assert saved.stat().st_mode & 0o077 == 0
    saved.unlink()


def test_debug_shows_the_traceback_and_keeps_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["methods", "nothing_like_it"]) == ExitCode.NOT_FOUND
    assert "Traceback" not in capsys.readouterr().err
    assert cli.execute(["--debug", "methods", "nothing_like_it"]) == ExitCode.NOT_FOUND
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(KeyboardInterrupt()) == 130
    assert report_error(typer.Abort()) == 130
    assert "interrupted" in capsys.readouterr().err


def test_exit_codes_of_commands_pass_through() -> None:
    assert report_error(typer.Exit(41)) == 41
    assert report_error(SystemExit(3)) == 3
    assert report_error(SystemExit("text")) == 1


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["runs", "lss"], 2, "lss"),
        (["nodes", "ls", "--bogus"], 2, "--bogus"),
        (["node", "join", "--name", "never-joined"], 10, "no address given"),
        (["run", "nothing_like_it", "--home", "/nonexistent"], 32, "no server is running"),
        (["server", "up", "--data-ports", "9-1"], 10, "--data-ports 9-1"),
        (["node", "join", "h:1", "--shard", "2/2"], 10, "--shard 2/2"),
        (["node", "join", "h:1", "--token", "a", "--token-file", "b"], 10, "both"),
        (["node", "join", "h:1", "--token-file", "/nonexistent"], 10, "/nonexistent"),
        (["node", "join", "h:1", "--profile", "/nonexistent"], 10, "/nonexistent"),
        (["runs", "ls", "--server", "h:1"], 10, "admin token"),
        (["methods", "nothing_like_it"], 32, "nothing_like_it"),
    ],
)
def test_invalid_command_lines(line: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(line) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")


def test_version_and_help_need_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["--version"]) == 0
    assert cli.execute(["--help"]) == 0
    assert "farshore" in capsys.readouterr().out
    assert cli.execute([]) == 2


def test_help_imports_no_heavy_packages() -> None:
    heavy = ("torch", "grpc", "numpy", "pydantic", "sqlalchemy", "rich", "yaml")
    script = (
        "import sys; from farshore.cli.main import execute; code = execute(['--help'])\n"
        f"sys.stderr.write(' '.join(m for m in {heavy!r} if m in sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "runs" in done.stdout
