"""Logs are bounded, and followers read every kept line once and in order."""

from __future__ import annotations

import logging
from pathlib import Path

from farshore.server.run_log import RunLog
from farshore.server.server_log import server_log


def read_all(log: RunLog, offset: int = 0, limit: int = 1 << 20) -> tuple[list[str], int]:
    found: list[str] = []
    while True:
        lines, after = log.read(offset, limit)
        if after == offset and not lines:
            return found, offset
        found += lines
        offset = after


def texts(lines: list[str]) -> list[str]:
    return [line.partition(": ")[2] for line in lines]


def test_followers_read_across_rotated_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt", file_bytes=200, rotated_files=100)
    expected, seen, offset = [], [], 0
    for number in range(60):
        log.write("run", [f"line {number}"])
        expected.append(f"line {number}")
        if number % 7 == 0:
            lines, offset = read_all(log, offset, limit=64)
            seen += lines
    lines, offset = read_all(log, offset, limit=64)
    assert texts(seen + lines) == expected
    assert texts(read_all(RunLog(tmp_path / "log.txt", file_bytes=200))[0]) == expected
    assert len(list(tmp_path.glob("log-*.txt"))) > 3
    assert log.read(offset) == ([], offset)


def test_a_log_never_exceeds_its_limit(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt", file_bytes=1000, rotated_files=2)
    for number in range(500):
        log.write("node-1", [f"line {number}", "x" * 50])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 1100
    lines, _ = read_all(log)
    assert lines[0].endswith("bytes of older lines are no longer kept")
    kept = [line for line in texts(lines[1:]) if line.startswith("line")]
    assert kept == [f"line {number}" for number in range(500 - len(kept), 500)]
    assert len(kept) > 20


def test_an_overlong_line_is_truncated(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt", file_bytes=1 << 20)
    log.write("run", ["y" * 100_000, "next"])
    lines, _ = log.read(0)
    assert len(lines[0]) < 17_000
    assert texts(lines[1:]) == ["next"]


def test_an_empty_log_reads_as_no_lines(tmp_path: Path) -> None:
    assert RunLog(tmp_path / "log.txt").read(0) == ([], 0)


def test_the_server_log_is_bounded(tmp_path: Path) -> None:
    logger = logging.getLogger("farshore.server.test")
    with server_log(tmp_path):
        for number in range(300):
            logger.info("%d %s", number, "x" * 100_000)
    logger.info("after")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["server.log", "server.log.1", "server.log.2", "server.log.3"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 17 << 20
    assert "299 x" in (tmp_path / "server.log").read_text()
    assert "after" not in (tmp_path / "server.log").read_text()
