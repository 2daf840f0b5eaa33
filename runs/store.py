"""The run store: what a server remembers of runs, nodes and join tokens, in one SQL database.

Nothing else imports SQLAlchemy, and this module does so when a store is opened: a node never needs it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, NotFoundError, StorageError
from .ids import new_run_id
from .states import RunState, check_transition

if TYPE_CHECKING:
    import sqlalchemy as sa

_BUSY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the store keeps it.

    Attributes
    ----------
    config_json, result_json : str
        JSON objects; ``result_json`` is empty until there is a result.
    seed : int
        0 to 2⁶⁴ − 1.
    directory : str
        Path of the run directory.
    count : int
        Nodes that the run needs.
    wanted, nodes : tuple of str
        Nodes asked for by name, and the cohort once it is chosen.
    roles_json : str
        What was asked for by role and the roles of the cohort, as the server writes it; empty in rows of older
        servers.
    data : Mapping[str, str]
        Data sets on the server's side: name -> path.
    created, started, ended : float
        Seconds since 1970; 0 = not yet.
    """

    id: str
    workload: str
    config_json: str = "{}"
    seed: int = 0
    directory: str = ""
    count: int = 1
    wanted: tuple[str, ...] = ()
    roles_json: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    state: RunState = "waiting"
    reason: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    nodes: tuple[str, ...] = ()
    epoch: int = 0
    done: int = 0
    total: int = 0
    result_json: str = ""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node that joined.

    Attributes
    ----------
    key_hash : bytes
        Hash of the key that it shows; the key itself is not stored.
    joined, last_seen, revoked : float
        Seconds since 1970; 0 = never.
    """

    name: str
    key_hash: bytes
    joined: float
    last_seen: float = 0.0
    revoked: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A join token.

    Attributes
    ----------
    secret_hash : bytes
        Hash of its secret; the secret itself is not stored.
    created, expires, revoked : float
        Seconds since 1970; ``revoked`` 0 = not.
    uses_left : int
        −1 = any number.
    """

    id: str
    secret_hash: bytes
    created: float
    expires: float
    uses_left: int = -1
    revoked: float = 0.0


class RunStore:
    """Rows of runs, nodes and tokens; any thread may use it.

    Parameters
    ----------
    url : str or Path
        SQLAlchemy URL, or the path of an SQLite file, which is made if it is not there.
    only_read : bool
        Make and change nothing; SQLite itself refuses writes then.
    clock : callable
        Seconds since 1970; for tests.

    Raises
    ------
    MissingExtraError
        SQLAlchemy is not installed.
    StorageError
        The database cannot be used.
    """

    def __init__(self, url: str | Path, clock: Callable[[], float] = time.time, *, only_read: bool = False) -> None:
        _check_installed()
        import sqlalchemy as sa

        self._clock = clock
        self._schema = _schema()
        with _telling("cannot open the run store"):
            where = sa.URL.create("sqlite", database=str(url)) if isinstance(url, Path) else sa.make_url(url)
            self._engine = _engine(where, only_read=only_read)
            if not only_read:
                self._schema.create_all(self._engine)
                _add_columns(self._engine, self._schema)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # ---- runs --------------------------------------------------------------------------------------------------

    def create_run(self, workload: str, **values: Any) -> RunRow:
        """Add a run in state ``waiting``, under a new id unless ``id`` is given.

        Parameters
        ----------
        workload : str
        **values
            Fields of :class:`RunRow`.

        Raises
        ------
        StorageError
            A run has that id, or the database refuses.
        """
        row = RunRow(**{"id": new_run_id(self._clock), "created": self._clock(), **values, "workload": workload})
        with self._writing(f"cannot add the run {row.id}") as connection:
            connection.execute(self._table("runs").insert().values(_packed(row)))
        return row

    def run(self, run_id: str) -> RunRow:
        """The run called ``run_id``.

        Raises
        ------
        NotFoundError
            There is none.
        """
        with self._reading() as connection:
            return self._run(connection, run_id)

    def runs(self, *states: RunState) -> list[RunRow]:
        """Runs in any of ``states`` (none given: in whatever state), oldest first."""
        table = self._table("runs")
        query = table.select().order_by(table.c.created, table.c.id)
        if states:
            query = query.where(table.c.state.in_(states))
        with self._reading() as connection:
            return [_run_row(row) for row in connection.execute(query).mappings()]

    def page(
        self, *, state: str = "", containing: str = "", limit: int = 50, offset: int = 0
    ) -> tuple[list[RunRow], int]:
        """Some runs, newest first, and how many there are of that kind.

        Parameters
        ----------
        state : str
            Only runs in that state; empty = in any.
        containing : str
            Only runs whose id or workload contains this; empty = all.
        limit, offset : int
            At most so many, after so many newer ones.
        """
        import sqlalchemy as sa

        table = self._table("runs")
        wanted = table.c.state == state if state else sa.true()
        if containing:
            named = table.c.id.contains(containing, autoescape=True)
            wanted &= named | table.c.workload.contains(containing, autoescape=True)
        query = table.select().where(wanted).order_by(table.c.created.desc(), table.c.id.desc())
        with self._reading() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(table).where(wanted)).scalar_one()
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return [_run_row(row) for row in rows], count

    def states(self) -> dict[str, int]:
        """How many runs are in each state that any is in."""
        import sqlalchemy as sa

        column = self._table("runs").c.state
        with self._reading() as connection:
            rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
            return {str(state): int(count) for state, count in rows}

    def save_run(self, row: RunRow) -> None:
        """Write all fields of a run.

        Raises
        ------
        NotFoundError
            There is no such run.
        ConfigError
            Its state does not follow the one that is stored.
        """
        with self._writing(f"cannot save the run {row.id}") as connection:
            check_transition(row.id, self._run(connection, row.id).state, row.state)
            self._write(connection, row)

    # ---- nodes and tokens --------------------------------------------------------------------------------------

    def save_node(self, row: NodeRow) -> None:
        """Add a node, or write all its fields."""
        self._save("nodes", "name", row)

    def nodes(self) -> list[NodeRow]:
        """Every node that ever joined, by name."""
        return [NodeRow(**values) for values in self._all("nodes", "name")]

    def save_token(self, row: TokenRow) -> None:
        """Add a token, or write all its fields."""
        self._save("tokens", "id", row)

    def tokens(self) -> list[TokenRow]:
        """Every token ever made, by id."""
        return [TokenRow(**values) for values in self._all("tokens", "id")]

    def use_token(self, token_id: str) -> TokenRow | None:
        """Take one use from a token, in one step; None if it is unknown, expired, revoked or used up."""
        import sqlalchemy as sa

        table = self._table("tokens")
        usable = (table.c.id == token_id) & (table.c.expires > self._clock()) & (table.c.revoked == 0)
        usable &= table.c.uses_left != 0
        left = sa.case((table.c.uses_left > 0, table.c.uses_left - 1), else_=table.c.uses_left)
        with self._writing("cannot use a join token") as connection:
            if not connection.execute(table.update().where(usable).values(uses_left=left)).rowcount:
                return None
            return TokenRow(**connection.execute(table.select().where(table.c.id == token_id)).mappings().one())

    # ---- below -------------------------------------------------------------------------------------------------

    def _table(self, name: str) -> sa.Table:
        return self._schema.tables[name]

    def _run(self, connection: sa.Connection, run_id: str) -> RunRow:
        table = self._table("runs")
        found = connection.execute(table.select().where(table.c.id == run_id)).mappings().one_or_none()
        if found is None:
            raise NotFoundError(f"no run is called '{run_id[:40]}'", hint="see 'farshore runs ls'")
        return _run_row(found)

    def _write(self, connection: sa.Connection, row: RunRow) -> None:
        table = self._table("runs")
        connection.execute(table.update().where(table.c.id == row.id).values(_packed(row)))

    def _save(self, name: str, key: str, row: NodeRow | TokenRow) -> None:
        table, values = self._table(name), asdict(row)
        with self._writing(f"cannot write to {name}") as connection:
            if not connection.execute(table.update().where(table.c[key] == values[key]).values(values)).rowcount:
                connection.execute(table.insert().values(values))

    def _all(self, name: str, key: str) -> list[Mapping[str, Any]]:
        table = self._table(name)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(table.select().order_by(table.c[key])).mappings()]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _telling("cannot read the run store"), self._engine.connect() as connection:
            connection.execution_options(reading=True)
            yield connection

    @contextmanager
    def _writing(self, what: str) -> Iterator[sa.Connection]:
        with _telling(what), self._engine.begin() as connection:
            yield connection


def _add_columns(engine: sa.Engine, schema: sa.MetaData) -> None:
    """Add the columns that a store of an older server lacks; their values are empty texts."""
    import sqlalchemy as sa

    with engine.begin() as connection:
        found = sa.inspect(connection)
        for table in schema.sorted_tables:
            present = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in present:
                    kind = column.type.compile(engine.dialect)
                    connection.exec_driver_sql(
                        f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT ''"
                    )


def _packed(row: RunRow) -> dict[str, Any]:
    # 64-bit seeds do not fit SQL's signed integers, and names belong to one row only: text for both.
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return values | {
        "seed": str(row.seed),
        "wanted": json.dumps(row.wanted),
        "nodes": json.dumps(row.nodes),
        "data": json.dumps(dict(row.data)),
    }


def _run_row(row: sa.RowMapping) -> RunRow:
    values = {str(name): value for name, value in row.items()}
    unpacked = {
        "seed": int(values["seed"]),
        "wanted": tuple(json.loads(values["wanted"])),
        "nodes": tuple(json.loads(values["nodes"])),
        "data": json.loads(values["data"]),
    }
    return RunRow(**{**values, **unpacked})


@functools.cache
def _schema() -> sa.MetaData:
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
        **dict.fromkeys(("created", "started", "ended"), float),
    }
    run |= dict.fromkeys(("count", "epoch", "done", "total"), int)
    table("runs", "id", **run)
    runs = schema.tables["runs"]
    runs.append_column(sa.Column("state", sa.String(16), nullable=False, index=True))
    table("nodes", "name", key_hash=bytes, joined=float, last_seen=float, revoked=float)
    table("tokens", "id", secret_hash=bytes, created=float, expires=float, uses_left=int, revoked=float)
    return schema


def _engine(url: sa.URL, *, only_read: bool) -> sa.Engine:
    import sqlalchemy as sa
    from sqlalchemy import event

    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        if only_read and not Path(url.database).is_file():
            raise NotFoundError(
                f"there is no run store {url.database}", hint="start a server with 'farshore server up'"
            )
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions too late for BEGIN IMMEDIATE
        pragmas = ("query_only=ON",) if only_read else ("journal_mode=WAL", "synchronous=NORMAL")
        for pragma in (*pragmas, f"busy_timeout={int(_BUSY_SECONDS * 1000)}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A reader that turns writer is refused at once when another wrote in between; a writer that says so waits.
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _telling(what: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        hint = "check the URL of the store, that its disk has room and that this user may write there"
        raise StorageError(f"{what}: {reason}", hint=hint) from error


def _check_installed() -> None:
    if find_spec("sqlalchemy") is None:
        raise MissingExtraError("SQLAlchemy", "server")
