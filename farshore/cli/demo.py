"""``farshore demo``: the whole of it on this machine, in a few minutes."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, Any

import typer

from .output import Json, amount, duration, emit, say, table

#: Chosen so that the demonstration takes less than three minutes on two cores.
STEPS = 120


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps, split and unsplit.")] = STEPS,
    keep: Annotated[bool, typer.Option("--keep", help="Leave homes, logs and the run's files on disk.")] = False,
    json_: Json = False,
) -> None:
    """A server and two edges on this machine fine-tune a real transformer; accuracy and bytes at the end."""
    from ..demo.show import demonstrate

    # Killed politely, it cleans up as for Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    found = demonstrate(settings(steps), keep=keep, as_json=json_)
    if json_:
        emit(found)
    else:
        tell(found)


def settings(steps: int) -> dict[str, Any]:
    """The method's settings: a task that every machine has, short enough for two cores."""
    return {"task": "docstrings", "steps": steps, "eval_samples": 500, "max_length": 48}


def tell(found: dict[str, Any]) -> None:
    """Print the figures of a demonstration."""
    from .communication import COLUMNS, Communication, Line

    metric = str(found["metric"])
    say("")
    table(
        "accuracy",
        ("model", metric, "steps"),
        [
            (f"split over {found['edges']} edges and a server", f"{found['accuracy']:.4f}", found["steps"]),
            ("unsplit, same steps", f"{found['accuracy_unsplit']:.4f}", found["steps"]),
        ],
        "",
    )
    say("")
    lines = Communication(tuple(Line(**line) for line in found["communication"]))
    table("communication", COLUMNS, lines.rows(), "nothing was sent")
    say("")
    payload = found["payload_bytes"]
    rows = [(name, amount(size), f"{size / payload:,.1f} x") for name, size in found["baselines"].items()]
    rows.append(("this run", amount(payload), "1.0 x"))
    table("payload of the same training by other means", ("method", "bytes", "against this run"), rows, "")
    say("")
    sockets = found["socket_bytes"]
    say(f"on the sockets, TLS and HTTP/2 included: {amount(sockets) if sockets is not None else 'not measured here'}")
    say(f"took {duration(found['seconds'])}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
