"""``farshore demo``: split fine-tuning with a server and two edges on this machine, in a few minutes."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, duration, emit, say, show, table

if TYPE_CHECKING:
    from ..demo.run_demo import Outcome

#: Takes less than three minutes on two cores.
STEPS = 100


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps, split and unsplit.")] = STEPS,
    keep: Annotated[bool, typer.Option("--keep", help="Keep homes, logs and run files on disk.")] = False,
    json_: Json = False,
) -> None:
    """Fine-tune a transformer with a server and two edges on this machine; print accuracy and bytes."""
    from ..demo.run_demo import outcome_as_dict, run_demo

    # SIGTERM cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    outcome = run_demo(settings(steps), keep=keep, as_json=json_)
    if json_:
        emit(outcome_as_dict(outcome))
    else:
        print_outcome(outcome)


def settings(steps: int) -> dict[str, Any]:
    """Build the method's settings: a task that needs no download, sized for two cores, with four evaluations."""
    reduced = {"eval_samples": 500, "eval_every": max(1, steps // 4), "max_length": 48}
    return {"task": "docstrings", "steps": steps, **reduced}


def print_outcome(outcome: Outcome) -> None:
    """Print accuracy, communication and compression of a demo."""
    from ..reports.communication import compressions
    from ..reports.tables import communication_table, compression_table

    split, unsplit = outcome.split, outcome.unsplit
    rows = [
        (f"split over {split.result['edges']} edges and a server", f"{split.result['score']:.4f}"),
        ("unsplit, same steps", f"{unsplit['score']:.4f}"),
    ]
    say("")
    table(("model", str(split.result["metric"])), rows, "")
    say("")
    show(communication_table(split.report))
    say("")
    show(compression_table(compressions(split.report, split.result["baselines"])))
    say("")
    say(f"{split.result['steps']} steps in {duration(outcome.seconds)}")
    say(f"report with charts: {split.page}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
