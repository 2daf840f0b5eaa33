"""The states of a run, and which may follow which."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..core.errors import ConfigError

RunState: TypeAlias = Literal["waiting", "starting", "running", "finished", "failed", "cancelled", "interrupted"]

#: States that a run leaves only when somebody resumes it; a finished one never.
ENDED: frozenset[str] = frozenset({"finished", "failed", "cancelled", "interrupted"})
#: A run goes back to waiting when one of its programs died (next epoch) and when it is resumed.
FOLLOWERS: dict[str, frozenset[str]] = {
    "waiting": frozenset({"starting", "failed", "cancelled", "interrupted"}),
    "starting": frozenset({"running", "waiting", "finished", "failed", "cancelled", "interrupted"}),
    "running": frozenset({"finished", "waiting", "failed", "cancelled", "interrupted"}),
    "finished": frozenset(),
    "failed": frozenset({"waiting"}),
    "cancelled": frozenset({"waiting"}),
    "interrupted": frozenset({"waiting"}),
}


def check_transition(run: str, old: str, new: str) -> None:
    """Refuse a change of state that makes no sense; staying in a state is always allowed.

    Raises
    ------
    ConfigError
        ``new`` is no state, or does not follow ``old``.
    """
    if new not in FOLLOWERS:
        raise ConfigError(f"run {run}: there is no state '{new}'")
    if new != old and new not in FOLLOWERS[old]:
        hint = "submit it again as a new run" if old == "finished" else ""
        raise ConfigError(f"run {run} is {old} and cannot become {new}", hint=hint)
