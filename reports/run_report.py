"""The communication report of a run, read from its run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from ..runs.directory import RunDirectory
from .account import ONCE, Account
from .chart_files import read_charts
from .charts import Chart
from .communication import CommunicationReport, Compression, Volume, communication, compressions
from .curves import Curve, read_curve
from .links import LinkEstimate, estimate_links

#: Metrics that count as a run's score; the first that the run has is used.
SCORES = ("acc", "score", "accuracy")

#: Directions of a transfer: node to server, server to node, node to node.
DIRECTIONS = ("up", "down", "peer")


@dataclass(frozen=True, slots=True)
class Window:
    """The traffic of one round or step, or of several consecutive ones.

    Attributes
    ----------
    label : str
        The number of the round or step, or the first and last.
    up, down, peer : Volume
        The method's messages by direction, each counted once.
    payload_by_kind : Mapping
        Kind -> payload bytes.
    """

    label: str
    up: Volume
    down: Volume
    peer: Volume
    payload_by_kind: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        volumes = {"up": self.up.as_dict(), "down": self.down.as_dict()}
        if self.peer.frames:
            volumes["peer"] = self.peer.as_dict()
        return {"label": self.label, **volumes, "payload_by_kind": dict(self.payload_by_kind)}


@dataclass(frozen=True, slots=True)
class Target:
    """The first round that reached a score, and the cumulative payload; both None if no round did."""

    score: float
    round: int | None
    payload_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """The communication report of a run.

    Attributes
    ----------
    info : Mapping
        Content of ``run.json``: id, workload, config, seed, nodes, created, versions …
    state, reason : str
        The last recorded state and its reason.
    result : Mapping or None
    communication : CommunicationReport
    account : Account
        The sums of the ledger that the report is computed from.
    windows : tuple of Window
    compressions : tuple of Compression
        Relative to the baselines that the method names.
    links : tuple of LinkEstimate
    score : str
        Name of the metric of ``curve``; empty if the run has none.
    curve : Curve or None
    targets : tuple of Target
    method_charts : tuple of Chart
        Charts that the method wrote.
    """

    info: Mapping[str, Any]
    state: str
    reason: str
    result: Mapping[str, Any] | None
    communication: CommunicationReport
    account: Account
    windows: tuple[Window, ...]
    compressions: tuple[Compression, ...]
    links: tuple[LinkEstimate, ...]
    score: str
    curve: Curve | None
    targets: tuple[Target, ...]
    method_charts: tuple[Chart, ...] = ()

    @property
    def unit(self) -> str:
        """``round`` or ``step``."""
        return self.account.periods.unit

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        run = {name: self.info.get(name) for name in ("id", "workload", "seed", "nodes", "created", "simulated")}
        return {
            "run": {**run, "state": self.state, "reason": self.reason},
            "communication": self.communication.as_dict(),
            "unit": self.unit,
            "windows": [window.as_dict() for window in self.windows],
            "compressions": [item.as_dict() for item in self.compressions],
            "links": [link.as_dict() for link in self.links],
            "score": self.score,
            "targets": [{"score": t.score, "round": t.round, "payload_bytes": t.payload_bytes} for t in self.targets],
        }


def read_report(run: RunDirectory, targets: Sequence[float] = (), *, windows: int = 200) -> RunReport:
    """Read the report of a run in any state.

    Parameters
    ----------
    run : RunDirectory
    targets : sequence of float
        Target scores, in addition to ``targets`` of the run's configuration.
    windows : int
        Maximum number of windows; consecutive rounds or steps are merged if there are more.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    StorageError
        A file cannot be read.
    """
    return build_report(run, Account.read(run.path, windows), targets)


def build_report(run: RunDirectory, account: Account, targets: Sequence[float] = ()) -> RunReport:
    """Build the report of :func:`read_report` from the sums of the run's ledger."""
    info, result = run.info, run.result
    volume = communication(account, run.socket_bytes())
    baselines = (result or {}).get("baselines")
    score, curve = _curve(run, account)
    all_targets = dict.fromkeys((*info["config"].get("targets", ()), *targets))
    state, reason = state_of(run)
    return RunReport(
        info=info,
        state=state,
        reason=reason,
        result=result,
        communication=volume,
        account=account,
        windows=windows_of(account),
        compressions=compressions(volume, baselines) if isinstance(baselines, dict) else (),
        links=estimate_links(account),
        score=score,
        curve=curve,
        targets=tuple(_target(curve, float(target)) for target in all_targets) if curve else (),
        method_charts=read_charts(run.path),
    )


def _curve(run: RunDirectory, account: Account) -> tuple[str, Curve | None]:
    for name in SCORES:
        try:
            return name, read_curve(run, name, account)
        except DataError:
            continue
    return "", None


def _target(curve: Curve, target: float) -> Target:
    hit = curve.reaches(target)
    return Target(target, *(hit or (None, None)))


def state_of(run: RunDirectory) -> tuple[str, str]:
    """State of a run and its reason, from the last event that records one.

    Simulations record no states: they are ``finished`` once they have a result, else ``unfinished``.
    """
    last = None
    for event in run.read_events():
        last = event if "epoch" in event else last
    if last is None:
        return ("finished" if run.result is not None else "unfinished"), ""
    return str(last["kind"]), str(last.get("reason") or "")


def windows_of(account: Account) -> tuple[Window, ...]:
    """The traffic of each window of an account."""
    found: dict[int, dict[str, Any]] = {}
    for row in account.by("window", "direction", "kind", parts=[ONCE]):
        window = found.setdefault(row["window"], {**dict.fromkeys(DIRECTIONS, Volume()), "kinds": {}})
        window[row["direction"]] += Volume(row["frames"], row["dense_bytes"], row["payload_bytes"], row["frame_bytes"])
        window["kinds"][row["kind"]] = window["kinds"].get(row["kind"], 0) + row["payload_bytes"]
    label = account.periods.label
    return tuple(Window(label(w), v["up"], v["down"], v["peer"], v["kinds"]) for w, v in sorted(found.items()))
