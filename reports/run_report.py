"""All that is told of a run's communication, put together from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from ..runs.directory import RunDirectory
from .account import ONCE, Account
from .communication import CommunicationReport, Compression, Volume, communication, compressions
from .curves import Curve, read_curve
from .links import OnLink, on_links

#: Figures that runs score themselves by; the first that a run has is taken.
SCORES = ("acc", "score", "accuracy")


#: Directions of a transfer.
WAYS = ("up", "down", "peer")


@dataclass(frozen=True, slots=True)
class Window:
    """What one round or step sent, or several together.

    Attributes
    ----------
    label : str
        Its number, or the first and last.
    up, down, peer : Volume
        The method's messages, each counted once; ``peer``: between nodes.
    payload_by_kind : Mapping
        Kind -> payload bytes.
    """

    label: str
    up: Volume
    down: Volume
    peer: Volume
    payload_by_kind: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        sides = {"up": self.up.as_dict(), "down": self.down.as_dict()}
        if self.peer.frames:
            sides["peer"] = self.peer.as_dict()
        return {"label": self.label, **sides, "payload_by_kind": dict(self.payload_by_kind)}


@dataclass(frozen=True, slots=True)
class Target:
    """A score and what it took to get there; both None where the run did not."""

    score: float
    round: int | None
    payload_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run's communication.

    Attributes
    ----------
    info : Mapping
        What ``run.json`` holds: id, workload, config, seed, nodes, created, versions …
    state, reason : str
        The last that is known of it.
    result : Mapping or None
    communication : CommunicationReport
    account : Account
        The sums behind all of this.
    windows : tuple of Window
    compressions : tuple of Compression
        Against the baselines that the method names.
    links : tuple of OnLink
    score : str
        What the curve is of; empty where the run has none.
    curve : Curve or None
    targets : tuple of Target
    """

    info: Mapping[str, Any]
    state: str
    reason: str
    result: Mapping[str, Any] | None
    communication: CommunicationReport
    account: Account
    windows: tuple[Window, ...]
    compressions: tuple[Compression, ...]
    links: tuple[OnLink, ...]
    score: str
    curve: Curve | None
    targets: tuple[Target, ...]

    @property
    def unit(self) -> str:
        """``round`` or ``step``."""
        return self.account.periods.unit

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
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
    """Read a run's report, whatever state it is in.

    Parameters
    ----------
    run : RunDirectory
    targets : sequence of float
        Scores whose price is asked for, beside those that the run's configuration names.
    windows : int
        At most so many; rounds or steps are put together where there are more.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    StorageError
        A file cannot be read.
    """
    return report_of(run, Account.read(run.path, windows), targets)


def report_of(run: RunDirectory, account: Account, targets: Sequence[float] = ()) -> RunReport:
    """The same as :func:`read_report`, from sums that were made already."""
    info, result = run.info, run.result
    volume = communication(account, run.socket_bytes())
    baselines = (result or {}).get("baselines")
    score, curve = _curve(run, account)
    wanted = dict.fromkeys((*info["config"].get("targets", ()), *targets))
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
        links=on_links(account),
        score=score,
        curve=curve,
        targets=tuple(_target(curve, float(target)) for target in wanted) if curve else (),
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
    """A run's state and the reason for it, by the last event that tells one.

    Simulations write none: they have a result or go on.
    """
    last = None
    for event in run.read_events():
        last = event if "epoch" in event else last
    if last is None:
        return ("finished" if run.result is not None else "unfinished"), ""
    return str(last["kind"]), str(last.get("reason") or "")


def windows_of(account: Account) -> tuple[Window, ...]:
    """What each round or step sent, or several together."""
    found: dict[int, dict[str, Any]] = {}
    for row in account.by("window", "direction", "kind", parts=[ONCE]):
        window = found.setdefault(row["window"], {**dict.fromkeys(WAYS, Volume()), "kinds": {}})
        window[row["direction"]] += Volume(row["frames"], row["dense_bytes"], row["payload_bytes"], row["frame_bytes"])
        window["kinds"][row["kind"]] = window["kinds"].get(row["kind"], 0) + row["payload_bytes"]
    label = account.periods.label
    return tuple(Window(label(w), v["up"], v["down"], v["peer"], v["kinds"]) for w, v in sorted(found.items()))
