"""The SQL database of the run store: schema, engine, migration of older databases, translation of errors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, NotFoundError, StorageError

if TYPE_CHECKING:
    import sqlalchemy as sa

_BUSY_SECONDS = 10.0


@functools.cache
def database_schema() -> sa.MetaData:
    """Return the tables ``runs``, ``nodes``, ``secrets`` and ``tokens``."""
    import sqlalchemy as sa

    schema = sa.MetaData()
    kinds = {str: sa.Text, float: sa.Double, int: sa.BigInteger, bytes: sa.LargeBinary}
    texts = ("config_json", "seed", "directory", "wanted", "data", "reason", "nodes", "result_json", "roles_json")

    def table(name: str, key: str, **columns: type) -> None:
        others: list[sa.Column[Any]] = [sa.Column(n, kinds[kind], nullable=False) for n, kind in columns.items()]
        sa.Table(name, schema, sa.Column(key, sa.String(64), primary_key=True), *others)

    run = {
        "workload": str,
        **dict.fromkeys(texts, str),
        **dict.fromkeys(("created", "started", "ended", "wait_seconds"), float),
    }
    run |= dict.fromkeys(("count", "epoch", "done", "total"), int)
    table("runs", "id", **run)
    runs = schema.tables["runs"]
    runs.append_column(sa.Column("state", sa.String(16), nullable=False, index=True))
    table("nodes", "name", key_hash=bytes, joined=float, last_seen=float, revoked=float)
    table("secrets", "name", current=bytes, next=bytes, attempt=bytes, contested=float, reason=str)
    table("tokens", "id", secret_hash=bytes, created=float, expires=float, uses_left=int, revoked=float)
    return schema


def shown_url(url: str | Path) -> str:
    """Return a database's URL for messages, without its password."""
    import sqlalchemy as sa

    try:
        return str(url) if isinstance(url, Path) else sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "of that URL"


def open_engine(url: str | Path, *, read_only: bool) -> sa.Engine:
    """Connect to the database; create missing tables and columns unless ``read_only``.

    Parameters
    ----------
    url : str or Path
        SQLAlchemy URL, or the path of an SQLite file.
    read_only : bool
        Do not create or change anything.

    Raises
    ------
    NotFoundError
        ``read_only``, and the SQLite file does not exist.
    """
    import sqlalchemy as sa

    parsed = sa.URL.create("sqlite", database=str(url)) if isinstance(url, Path) else sa.make_url(url)
    engine = _engine(parsed, read_only=read_only)
    if not read_only:
        database_schema().create_all(engine)
        _add_columns(engine, database_schema())
    return engine


def _engine(url: sa.URL, *, read_only: bool) -> sa.Engine:
    import sqlalchemy as sa
    from sqlalchemy import event

    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        if read_only and not Path(url.database).is_file():
            raise NotFoundError(
                f"run store {url.database} does not exist", hint="start a server with 'farshore server up'"
            )
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions too late for BEGIN IMMEDIATE
        pragmas = ("query_only=ON",) if read_only else ("journal_mode=WAL", "synchronous=NORMAL")
        for pragma in (*pragmas, f"busy_timeout={int(_BUSY_SECONDS * 1000)}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        # SQLite fails a read transaction that starts to write after another writer, without waiting for the lock.
        # BEGIN IMMEDIATE acquires the write lock at once and waits for it.
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable') else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN" if options.get("reading") else "BEGIN IMMEDIATE")

    return engine


def _add_columns(engine: sa.Engine, schema: sa.MetaData) -> None:
    """Add the columns that a database of an older version lacks; their values are empty strings, or 0."""
    import sqlalchemy as sa

    with engine.begin() as connection:
        inspector = sa.inspect(connection)
        for table in schema.sorted_tables:
            present = {column["name"] for column in inspector.get_columns(table.name)}
            for column in table.columns:
                if column.name not in present:
                    kind = column.type.compile(engine.dialect)
                    default = "0" if isinstance(column.type, sa.Double | sa.BigInteger) else "''"
                    connection.exec_driver_sql(
                        f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT {default}"
                    )


@contextmanager
def database_errors(operation: str) -> Iterator[None]:
    """Translate database errors to :class:`StorageError`, whose message begins with ``operation``."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        hint = "check the store's URL, the free space on its disk, and this user's write permission"
        raise StorageError(f"{operation}: {reason}", hint=hint) from error


def check_installed() -> None:
    """Raise :class:`MissingExtraError` if SQLAlchemy is not installed."""
    if find_spec("sqlalchemy") is None:
        raise MissingExtraError("SQLAlchemy", "server")
