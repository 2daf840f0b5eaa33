"""``farshore demo``: the whole of it on this machine, in a few minutes."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, duration, emit, say, show, table

if TYPE_CHECKING:
    from ..demo.run_demo import Outcome

#: Chosen so that the demonstration takes less than three minutes on two cores.
STEPS = 100


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps, split and unsplit.")] = STEPS,
    keep: Annotated[bool, typer.Option("--keep", help="Leave homes, logs and the run's files on disk.")] = False,
    json_: Json = False,
) -> None:
    """A server and two edges on this machine fine-tune a real transformer; accuracy and bytes at the end."""
    from ..demo.run_demo import demonstrate, figures

    # Killed politely, it cleans up as for Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    outcome = demonstrate(settings(steps), keep=keep, as_json=json_)
    if json_:
        emit(figures(outcome))
    else:
        tell(outcome)


def settings(steps: int) -> dict[str, Any]:
    """The method's settings: a task that every machine has, short enough for two cores, scored four times."""
    short = {"eval_samples": 500, "eval_every": max(1, steps // 4), "max_length": 48}
    return {"task": "docstrings", "steps": steps, **short}


def tell(outcome: Outcome) -> None:
    """Print what a demonstration gave."""
    from ..reports.communication import compressions
    from ..reports.tables import communication_table, compression_table

    split, whole = outcome.split, outcome.unsplit
    rows = [
        (f"split over {split.result['edges']} edges and a server", f"{split.result['score']:.4f}"),
        ("unsplit, the same steps", f"{whole['score']:.4f}"),
    ]
    say("")
    table(("model", str(split.result["metric"])), rows, "")
    say("")
    show(communication_table(split.report))
    say("")
    show(compression_table(compressions(split.report, split.result["baselines"])))
    say("")
    say(f"{split.result['steps']} steps; it took {duration(outcome.seconds)}")
    say(f"report with charts: {split.page}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
