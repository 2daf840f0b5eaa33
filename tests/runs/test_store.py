"""The run store persists runs, nodes and tokens, and rejects invalid state transitions."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from farshore.core.errors import ConfigError, MissingExtraError, NotFoundError, StorageError
from farshore.runs.states import ENDED, TRANSITIONS, check_transition
from farshore.runs.store import NodeRow, RunRow, RunStore, TokenRow


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock):
    store = RunStore(tmp_path / "home" / "runs.sqlite", clock)
    yield store
    store.close()


def full_row() -> RunRow:
    return RunRow(
        id="r1",
        workload="split_fine_tuning",
        config_json='{"rank": 8}',
        seed=2**64 - 1,
        directory="/runs/r1",
        count=2,
        requested_nodes=("a", "b"),
        data={"sst2": "/data/é"},
        state="running",
        reason="because",
        created=1.5,
        started=2.5,
        ended=3.5,
        nodes=("b", "a"),
        epoch=3,
        done=5,
        total=2**40,
        result_json='{"accuracy": 1}',
    )


def test_every_field_is_read_back_after_reopening(tmp_path: Path) -> None:
    row = full_row()
    url = f"sqlite:///{tmp_path}/deep/er/runs.sqlite"
    store = RunStore(url)
    store.create_run(row.workload, **{n: getattr(row, n) for n in RunRow.__slots__ if n != "workload"})
    store.close()
    again = RunStore(url)
    assert again.run("r1") == row
    assert again.runs() == [row]
    again.close()


def test_a_new_run_is_waiting_and_has_a_sortable_id(store: RunStore, clock: Clock) -> None:
    rows = []
    for _ in range(5):
        rows.append(store.create_run("ping"))
        clock.now += 1
    assert [row.state for row in rows] == ["waiting"] * 5
    assert [row.created for row in rows] == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    assert store.runs() == rows
    store.save_run(replace(rows[1], state="cancelled", reason="why not"))
    assert [row.id for row in store.runs("cancelled", "failed")] == [rows[1].id]
    with pytest.raises(StorageError, match="cannot add the run"):
        store.create_run("ping", id=rows[0].id)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(TRANSITIONS, repeat=2)))
def test_only_the_documented_state_transitions_are_allowed(store: RunStore, old: str, new: str) -> None:
    allowed = {
        ("waiting", "starting"),
        ("starting", "running"),
        ("starting", "finished"),
        ("running", "finished"),
        *((active, end) for active in ("waiting", "starting", "running") for end in ENDED - {"finished"}),
        *((active, "waiting") for active in ("starting", "running")),
        *((end, "waiting") for end in ("failed", "cancelled", "interrupted")),
        *((state, state) for state in TRANSITIONS),
    }
    row = store.create_run("ping", state=old)
    if (old, new) in allowed:
        store.save_run(replace(row, state=new, reason="now"))
        assert (store.run(row.id).state, store.run(row.id).reason) == (new, "now")
    else:
        with pytest.raises(ConfigError, match=f"is {old} and cannot become {new}"):
            store.save_run(replace(row, state=new))
        assert store.run(row.id) == row


def test_an_unknown_state_is_rejected(store: RunStore) -> None:
    with pytest.raises(ConfigError, match="unknown state 'asleep'"):
        check_transition("r", "waiting", "asleep")
    row = store.create_run("ping")
    with pytest.raises(ConfigError, match="unknown state"):
        store.save_run(replace(row, state="asleep"))  # type: ignore[arg-type]


def test_an_unknown_run_raises_an_error(store: RunStore) -> None:
    for call in (lambda: store.run("x"), lambda: store.save_run(full_row())):
        with pytest.raises(NotFoundError, match="no run is called"):
            call()
    assert store.runs() == []


def test_several_stores_on_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    token = TokenRow("t", b"hash", 0.0, 2e9, uses_left=300)
    first = RunStore(path)
    first.save_token(token)
    used, errors = [], []

    def work() -> None:
        store = RunStore(path)
        try:
            used.extend(1 for _ in range(100) if store.use_token("t"))
            for _ in range(20):
                # save_run reads, then writes; two stores that both read first must not fail.
                store.save_run(replace(store.create_run("ping"), state="starting"))
        except Exception as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(used) == 300, "each use is granted once"
    assert len({row.id for row in first.runs("starting")}) == 80
    first.close()


def test_nodes_and_tokens_are_stored_and_tokens_are_used_up(store: RunStore, clock: Clock) -> None:
    node = NodeRow("edge-1", b"\x00\xff", joined=5.0)
    store.save_node(NodeRow("edge-2", b"y", 6.0))
    store.save_node(node)
    store.save_node(replace(node, revoked=7.0))
    assert store.nodes() == [replace(node, revoked=7.0), NodeRow("edge-2", b"y", 6.0)]
    tokens = [
        TokenRow("any", b"h", 0.0, clock.now + 1),
        TokenRow("expired", b"h", 0.0, clock.now),
        TokenRow("once", b"h", 0.0, clock.now + 1, uses_left=1),
        TokenRow("revoked", b"h", 0.0, clock.now + 1, revoked=1.0),
    ]
    for token in tokens:
        store.save_token(token)
    assert store.tokens() == tokens
    assert store.use_token("any") == tokens[0]
    assert store.use_token("once") == replace(tokens[2], uses_left=0)
    for name in ("once", "expired", "revoked", "unknown"):
        assert store.use_token(name) is None
    clock.now += 1
    assert store.use_token("any") is None


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/nowhere/x.sqlite", "nothing+like://it"])
def test_an_unusable_database_raises_an_error_with_a_hint(url: str) -> None:
    with pytest.raises(StorageError, match="cannot open the run store") as caught:
        RunStore(url)
    assert caught.value.hint


def test_a_file_that_is_not_a_database_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a database at all " * 100)
    with pytest.raises(StorageError, match=r"cannot open the run store .*: file is not a database"):
        RunStore(tmp_path / "x")


def test_sqlite_is_configured_for_concurrent_readers(store: RunStore) -> None:
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 1000


def test_readers_do_not_wait_for_a_writer(store: RunStore) -> None:
    row = store.create_run("ping")
    with store._writing("hold the lock"):
        assert store.runs() == [row]


def test_the_error_names_the_missing_database_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farshore.runs.database.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"SQLAlchemy.*\[server\]"):
        RunStore(tmp_path / "x")


def test_a_page_lists_newest_runs_first_and_counts_all_matches(store: RunStore, clock: Clock) -> None:
    for number in range(7):
        clock.now += 1
        store.create_run("vhl" if number % 2 else "ping_100%", id=f"r{number}")
    rows, count = store.page(limit=2, offset=1)
    assert ([row.id for row in rows], count) == (["r5", "r4"], 7)
    rows, count = store.page(containing="100%", limit=2)
    assert ([row.id for row in rows], count) == (["r6", "r4"], 4)
    assert store.page(containing="1__%")[1] == 0
    assert store.page(state="failed") == ([], 0)
    assert store.page(state="waiting", containing="r3")[1] == 1
    assert store.count_by_state() == {"waiting": 7}


def test_a_read_only_store_sees_writes_and_rejects_its_own(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with pytest.raises(NotFoundError, match=r"run store .* does not exist"):
        RunStore(path, read_only=True)
    assert not path.exists()
    writer, reader = RunStore(path), RunStore(path, read_only=True)
    row = writer.create_run("vhl")
    assert reader.run(row.id) == row
    for write in (lambda: reader.create_run("vhl"), lambda: reader.save_run(row), lambda: reader.use_token("t")):
        with pytest.raises(StorageError, match="readonly"):
            write()
    assert writer.runs() == [row]


def test_missing_columns_of_an_older_store_are_added(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    store = RunStore(path)
    kept = store.create_run("vhl", requested_nodes=("a",), nodes=("a", "b"), count=2)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE runs DROP COLUMN roles_json")
    store = RunStore(path)
    assert store.run(kept.id) == kept
    assert store.create_run("vhl", roles_json="{}").roles_json == "{}"
    store.close()
