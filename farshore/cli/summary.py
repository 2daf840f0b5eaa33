"""Print a run's settings, result and communication."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .follow import result
from .output import duration, local_time, say, show

if TYPE_CHECKING:
    from ..proto.control_pb2 import RunInfo
    from ..reports.communication import CommunicationReport
    from ..runs.directory import RunDirectory


def as_dict(run: RunInfo) -> dict[str, Any]:
    """Convert a run to JSON-able fields, with its configuration and result as objects."""
    import json

    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(run, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for name in ("config", "result", "progress"):
        text = fields.pop(f"{name}_json")
        fields[name] = json.loads(text) if text else None
    for name in ("done", "total"):
        fields[name] = int(fields[name])  # protobuf's JSON has 64-bit integers as text
    return fields


def run_info_from_disk(run: RunDirectory) -> RunInfo:
    """Build a ``RunInfo`` like a server's from the run directory alone."""
    import json

    from ..core.json_text import to_json
    from ..proto.control_pb2 import RunInfo
    from ..reports.run_report import state_of

    info, result, (state, reason) = run.info, run.result, state_of(run)
    return RunInfo(
        id=str(info["id"]),
        workload=str(info["workload"]),
        state=state,
        reason=reason,
        nodes=[str(node) for node in info["nodes"]],
        created=float(info.get("created") or 0),
        directory=str(run.path),
        config_json=json.dumps(info["config"]),
        result_json="" if result is None else to_json(result),
    )


def describe(run: RunInfo) -> None:
    """Print a run in full."""
    say(f"run {run.id}: {run.workload}, {run.state}{f' ({run.reason})' if run.reason else ''}")
    say(f"  nodes     {', '.join(run.nodes) or '–'}")
    say(f"  created   {local_time(run.created)}")
    if run.started:
        end = f", {duration(run.ended - run.started)}" if run.ended else ""
        say(f"  started   {local_time(run.started)}{end}")
    if run.total:
        say(f"  progress  {run.done}/{run.total}")
    say(f"  directory {run.directory or '–'}")
    say(f"  config    {_short(run.config_json)}")
    print_result(run)
    _files(run)


def _files(run: RunInfo) -> None:
    """List the run's files if its directory is on this machine."""
    from ..runs.contents import contents

    found = contents(Path(run.directory)) if run.directory else []
    if found:
        say(f"files in {run.directory}")
    for name, meaning in found:
        say(f"  {name:<24} {meaning}")


def print_result(run: RunInfo) -> None:
    """Print the result, and the communication tables if the run directory is on this machine."""
    found = result(run)
    if found:
        say("result")
        for name, value in found.items():
            # Baselines are printed below, as ratios; the table of a sweep is in sweep.csv.
            if name not in ("baselines", "table") and value is not None:
                say(f"  {name:<20} {format_value(value)}")
    report = communication(run)
    if report is None:
        return
    from ..reports.communication import compressions
    from ..reports.tables import communication_table, compression_table

    show(communication_table(report))
    baselines = found.get("baselines")
    if isinstance(baselines, dict) and baselines:
        show(compression_table(compressions(report, baselines)))


def _short(config_json: str) -> str:
    """Shorten a configuration's long texts (a Flower app's archive) to their length."""
    import json

    def shorten(value: Any) -> Any:
        return f"… {len(value)} characters" if isinstance(value, str) and len(value) > _LONG_TEXT else value

    return json.dumps({name: shorten(value) for name, value in json.loads(config_json or "{}").items()})


#: Longest text of a setting that is printed in full, in characters.
_LONG_TEXT = 500


def format_value(value: object) -> str:
    """Format a value of a result, or values in a mapping or list, as plain text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(format_value, value)) or "–"
    return str(value)


def communication(run: RunInfo) -> CommunicationReport | None:
    """Read a run's communication, or None if its directory is not on this machine.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    StorageError
        The ledger cannot be read.
    """
    if not run.directory or not Path(run.directory).is_dir():
        return None
    from ..reports.communication import communication_of
    from ..runs.directory import RunDirectory

    directory = RunDirectory(Path(run.directory))
    return communication_of(directory)
