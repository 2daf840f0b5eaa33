"""The run store: the server's records of runs, nodes and join tokens in an SQL database.

SQLAlchemy is imported when a store is opened, so nodes do not need it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFoundError
from .database import check_installed, database_errors, database_schema, open_engine, shown_url
from .ids import new_run_id
from .states import RunState, check_transition

if TYPE_CHECKING:
    import sqlalchemy as sa


#: Characters of the longest result that lists of runs include.
_BRIEF_RESULT = 256 << 10


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the store.

    Attributes
    ----------
    config_json, result_json : str
        JSON objects; ``result_json`` is empty until there is a result.
    seed : int
        0 to 2⁶⁴ − 1.
    directory : str
        Path of the run directory.
    count : int
        Number of nodes that the run needs.
    requested_nodes, nodes : tuple of str
        Nodes requested by name, and the selected nodes.
    roles_json : str
        Requested roles and the roles of the selected nodes, as the server writes them; empty in rows of older
        versions.
    data : Mapping[str, str]
        Data sets on the server: name -> path.
    state, reason : str
        Current state, and the reason for it.
    created, started, ended : float
        Seconds since 1970; 0 if it has not happened.
    wait_seconds : float
        How long the run may wait for nodes before it fails; 0 = without limit.
    epoch : int
        Restart epoch: number of the current attempt to run the programs.
    done, total : int
        Progress in rounds or steps.
    """

    id: str
    workload: str
    config_json: str = "{}"
    seed: int = 0
    directory: str = ""
    count: int = 1
    requested_nodes: tuple[str, ...] = ()
    roles_json: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    state: RunState = "waiting"
    reason: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    wait_seconds: float = 0.0
    nodes: tuple[str, ...] = ()
    epoch: int = 0
    done: int = 0
    total: int = 0
    result_json: str = ""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node that has joined the server.

    Attributes
    ----------
    key_hash : bytes
        Hash of the node's key; the key itself is not stored.
    joined, last_seen, revoked : float
        Seconds since 1970; 0 if it has not happened.
    """

    name: str
    key_hash: bytes
    joined: float
    last_seen: float = 0.0
    revoked: float = 0.0


@dataclass(frozen=True, slots=True)
class SecretRow:
    """The rolling secret of a node; see ``docs/security.md``.

    Attributes
    ----------
    current, next : bytes
        Hashes of the secret that the node is known to have stored, and of the one that it was sent; the latter is empty
        if there is none.
    attempt : bytes
        Hash of the text with which the node joined; empty once it has connected.
    contested : float
        When the key was found in use in two places, in seconds since 1970; 0 if it was not.
    reason : str
        What was observed then.
    """

    name: str
    current: bytes
    next: bytes = b""
    attempt: bytes = b""
    contested: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A join token.

    Attributes
    ----------
    secret_hash : bytes
        Hash of the token's secret; the secret itself is not stored.
    created, expires, revoked : float
        Seconds since 1970; ``revoked`` is 0 for a valid token.
    uses_left : int
        Remaining uses; −1 means unlimited.
    """

    id: str
    secret_hash: bytes
    created: float
    expires: float
    uses_left: int = -1
    revoked: float = 0.0


class RunStore:
    """Rows of runs, nodes and join tokens. Thread-safe; several processes may open the same database.

    Parameters
    ----------
    url : str or Path
        SQLAlchemy URL, or the path of an SQLite file, which is created if missing.
    clock : callable
        Returns seconds since 1970; replaceable in tests.
    read_only : bool
        Do not create or change anything; SQLite then rejects writes.

    Raises
    ------
    MissingExtraError
        SQLAlchemy is not installed.
    StorageError
        The database cannot be opened.
    NotFoundError
        ``read_only``, and the SQLite file does not exist.
    """

    def __init__(self, url: str | Path, clock: Callable[[], float] = time.time, *, read_only: bool = False) -> None:
        check_installed()
        self._clock = clock
        self._schema = database_schema()
        with database_errors(f"cannot open the run store {shown_url(url)}"):
            self._engine = open_engine(url, read_only=read_only)

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
            The id is taken, or the database reports an error.
        """
        row = RunRow(**{"id": new_run_id(self._clock), "created": self._clock(), **values, "workload": workload})
        with self._writing(f"cannot add the run {row.id}") as connection:
            connection.execute(self._table("runs").insert().values(_packed(row)))
        return row

    def run(self, run_id: str) -> RunRow:
        """Return the run ``run_id``.

        Raises
        ------
        NotFoundError
            No such run exists.
        """
        with self._reading() as connection:
            return self._run(connection, run_id)

    def runs(self, *states: RunState, brief: bool = False) -> list[RunRow]:
        """Return the runs in any of ``states`` (all runs if none is given), oldest first.

        Parameters
        ----------
        brief : bool
            Without configurations, and without results that are very long.
        """
        table = self._table("runs")
        query = self._columns(brief).order_by(table.c.created, table.c.id)
        if states:
            query = query.where(table.c.state.in_(states))
        with self._reading() as connection:
            return [_run_row(row) for row in connection.execute(query).mappings()]

    def page(
        self, *, state: str = "", containing: str = "", limit: int = 50, offset: int = 0
    ) -> tuple[list[RunRow], int]:
        """Return one page of runs, newest first, and the number of all matching runs.

        Parameters
        ----------
        state : str
            Match only runs in this state; empty matches all.
        containing : str
            Match only runs whose id or workload contains this text; empty matches all.
        limit, offset : int
            Maximum number of runs, and number of newer runs to skip.

        The rows have no configurations, and no results that are very long.
        """
        import sqlalchemy as sa

        table = self._table("runs")
        condition = table.c.state == state if state else sa.true()
        if containing:
            by_id = table.c.id.contains(containing, autoescape=True)
            condition &= by_id | table.c.workload.contains(containing, autoescape=True)
        query = self._columns(brief=True).where(condition).order_by(table.c.created.desc(), table.c.id.desc())
        with self._reading() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one()
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return [_run_row(row) for row in rows], count

    def count_by_state(self) -> dict[str, int]:
        """Return the number of runs by state, without states that no run has."""
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
            No such run exists.
        ConfigError
            The stored state does not allow a transition to the new one.
        """
        with self._writing(f"cannot save the run {row.id}") as connection:
            check_transition(row.id, self._run(connection, row.id).state, row.state)
            self._write(connection, row)

    # ---- nodes and tokens --------------------------------------------------------------------------------------

    def save_node(self, row: NodeRow) -> None:
        """Insert a node, or update all its fields."""
        self._save("nodes", "name", row)

    def nodes(self) -> list[NodeRow]:
        """Return all nodes that have ever joined, by name."""
        return [NodeRow(**values) for values in self._all("nodes", "name")]

    def save_secret(self, row: SecretRow) -> None:
        """Insert the secret of a node, or update all its fields; it survives a loss of power from then on."""
        self._save("secrets", "name", row, durable=True)

    def secrets(self) -> list[SecretRow]:
        """Return the secrets of all nodes, by name."""
        return [SecretRow(**values) for values in self._all("secrets", "name")]

    def save_token(self, row: TokenRow) -> None:
        """Insert a token, or update all its fields."""
        self._save("tokens", "id", row)

    def tokens(self) -> list[TokenRow]:
        """Return all tokens ever created, by id."""
        return [TokenRow(**values) for values in self._all("tokens", "id")]

    def use_token(self, token_id: str) -> TokenRow | None:
        """Use a token once, atomically; return None if it is unknown, expired, revoked or used up."""
        import sqlalchemy as sa

        table = self._table("tokens")
        usable = (table.c.id == token_id) & (table.c.expires > self._clock()) & (table.c.revoked == 0)
        usable &= table.c.uses_left != 0
        left = sa.case((table.c.uses_left > 0, table.c.uses_left - 1), else_=table.c.uses_left)
        with self._writing("cannot use a join token") as connection:
            if not connection.execute(table.update().where(usable).values(uses_left=left)).rowcount:
                return None
            return TokenRow(**connection.execute(table.select().where(table.c.id == token_id)).mappings().one())

    # ---- queries -----------------------------------------------------------------------------------------------

    def _table(self, name: str) -> sa.Table:
        return self._schema.tables[name]

    def _columns(self, brief: bool) -> sa.Select[Any]:
        """Select the columns of runs; ``brief`` leaves out what may be long."""
        import sqlalchemy as sa

        table = self._table("runs")
        if not brief:
            return table.select()
        short = sa.func.length(table.c.result_json) <= _BRIEF_RESULT
        result = sa.case((short, table.c.result_json), else_="").label("result_json")
        others = [column for column in table.c if column.name not in ("config_json", "result_json")]
        return sa.select(*others, sa.literal("{}").label("config_json"), result)

    def _run(self, connection: sa.Connection, run_id: str) -> RunRow:
        table = self._table("runs")
        found = connection.execute(table.select().where(table.c.id == run_id)).mappings().one_or_none()
        if found is None:
            raise NotFoundError(f"no run is called '{run_id[:40]}'", hint="see 'farshore runs ls'")
        return _run_row(found)

    def _write(self, connection: sa.Connection, row: RunRow) -> None:
        table = self._table("runs")
        connection.execute(table.update().where(table.c.id == row.id).values(_packed(row)))

    def _save(self, name: str, key: str, row: NodeRow | SecretRow | TokenRow, *, durable: bool = False) -> None:
        table, values = self._table(name), asdict(row)
        with self._writing(f"cannot write to {name}", durable=durable) as connection:
            if not connection.execute(table.update().where(table.c[key] == values[key]).values(values)).rowcount:
                connection.execute(table.insert().values(values))

    def _all(self, name: str, key: str) -> list[Mapping[str, Any]]:
        table = self._table(name)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(table.select().order_by(table.c[key])).mappings()]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with database_errors("cannot read the run store"), self._engine.connect() as connection:
            connection.execution_options(reading=True)
            yield connection

    @contextmanager
    def _writing(self, operation: str, *, durable: bool = False) -> Iterator[sa.Connection]:
        engine = self._engine.execution_options(durable=True) if durable else self._engine
        with database_errors(operation), engine.begin() as connection:
            yield connection


#: Column of ``requested_nodes``; the name is older, and stores keep it.
_REQUESTED = "wanted"


def _packed(row: RunRow) -> dict[str, Any]:
    # 64-bit unsigned seeds do not fit into SQL's signed integers; lists are stored as JSON text.
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    values[_REQUESTED] = json.dumps(values.pop("requested_nodes"))
    return values | {
        "seed": str(row.seed),
        "nodes": json.dumps(row.nodes),
        "data": json.dumps(dict(row.data)),
    }


def _run_row(row: sa.RowMapping) -> RunRow:
    values = {str(name): value for name, value in row.items()}
    unpacked = {
        "seed": int(values["seed"]),
        "requested_nodes": tuple(json.loads(values.pop(_REQUESTED))),
        "nodes": tuple(json.loads(values["nodes"])),
        "data": json.loads(values["data"]),
    }
    return RunRow(**{**values, **unpacked})
