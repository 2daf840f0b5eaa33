"""How a run is told at its end: its result and what it cost on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .follow import result
from .output import duration, moment, say, show

if TYPE_CHECKING:
    from ..proto.control_pb2 import RunInfo
    from ..reports.communication import CommunicationReport
    from ..runs.directory import RunDirectory


def as_dict(run: RunInfo) -> dict[str, Any]:
    """The run as JSON-able fields, its configuration and result as objects."""
    import json

    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(run, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for name in ("config", "result", "progress"):
        text = fields.pop(f"{name}_json")
        fields[name] = json.loads(text) if text else None
    for name in ("done", "total"):
        fields[name] = int(fields[name])  # JSON of protobuf writes 64-bit numbers as text
    return fields


def stored(run: RunDirectory) -> RunInfo:
    """A run as a server would tell it, from its directory alone."""
    import json

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
        result_json="" if result is None else json.dumps(result),
    )


def describe(run: RunInfo) -> None:
    """Print a run in full."""
    say(f"run {run.id}: {run.workload}, {run.state}{f' ({run.reason})' if run.reason else ''}")
    say(f"  nodes     {', '.join(run.nodes) or '–'}")
    say(f"  created   {moment(run.created)}")
    if run.started:
        end = f", {duration(run.ended - run.started)}" if run.ended else ""
        say(f"  started   {moment(run.started)}{end}")
    if run.total:
        say(f"  progress  {run.done}/{run.total}")
    say(f"  directory {run.directory or '–'}")
    say(f"  config    {_short(run.config_json)}")
    outcome(run)
    _files(run)


def _files(run: RunInfo) -> None:
    """Name what the run has left behind, where its directory is on this machine."""
    from ..runs.contents import contents

    found = contents(Path(run.directory)) if run.directory else []
    if found:
        say(f"files in {run.directory}")
    for name, meaning in found:
        say(f"  {name:<24} {meaning}")


def outcome(run: RunInfo) -> None:
    """Print the result, and the communication table where the run directory is on this machine."""
    found = result(run)
    if found:
        say("result")
        for name, value in found.items():
            if name != "baselines" and value is not None:  # baselines are told below, as ratios
                say(f"  {name:<20} {plain(value)}")
    report = account(run)
    if report is None:
        return
    from ..reports.communication import compressions
    from ..reports.tables import communication_table, compression_table

    show(communication_table(report))
    baselines = found.get("baselines")
    if isinstance(baselines, dict) and baselines:
        show(compression_table(compressions(report, baselines)))


def _short(config_json: str) -> str:
    """A configuration whose long texts (an app's archive) are told by their length."""
    import json

    def told(value: Any) -> Any:
        return f"… {len(value)} characters" if isinstance(value, str) and len(value) > _LONG_TEXT else value

    return json.dumps({name: told(value) for name, value in json.loads(config_json or "{}").items()})


#: Longest text of a setting that is shown.
_LONG_TEXT = 500


def plain(value: object) -> str:
    """A figure of a result, or figures in a mapping or list, in plain words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(plain, value)) or "–"
    return str(value)


def account(run: RunInfo) -> CommunicationReport | None:
    """What a run cost on the wire, or None where its directory is not on this machine.

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
