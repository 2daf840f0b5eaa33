"""The states of a run, and the transitions between them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..core.errors import ConfigError

RunState: TypeAlias = Literal["waiting", "starting", "running", "finished", "failed", "cancelled", "interrupted"]

#: Terminal states. A run leaves them only when it is resumed; a finished run cannot be resumed.
ENDED: frozenset[str] = frozenset({"finished", "failed", "cancelled", "interrupted"})
#: Allowed transitions. A run returns to ``waiting`` when a program fails (next restart epoch) and when it is resumed.
TRANSITIONS: dict[str, frozenset[str]] = {
    "waiting": frozenset({"starting", "failed", "cancelled", "interrupted"}),
    "starting": frozenset({"running", "waiting", "finished", "failed", "cancelled", "interrupted"}),
    "running": frozenset({"finished", "waiting", "failed", "cancelled", "interrupted"}),
    "finished": frozenset(),
    "failed": frozenset({"waiting"}),
    "cancelled": frozenset({"waiting"}),
    "interrupted": frozenset({"waiting"}),
}


def check_transition(run: str, old: str, new: str) -> None:
    """Check a change of state; staying in a state is always allowed.

    Raises
    ------
    ConfigError
        ``new`` is not a state, or must not follow ``old``.
    """
    if new not in TRANSITIONS:
        raise ConfigError(f"run {run}: unknown state '{new}'")
    if new != old and new not in TRANSITIONS[old]:
        hint = "submit a new run" if old == "finished" else ""
        raise ConfigError(f"run {run} is {old} and cannot become {new}", hint=hint)
