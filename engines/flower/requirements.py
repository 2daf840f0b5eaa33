"""Compares what a Flower app asks for in its ``pyproject.toml`` with what is installed."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.version import installed

_MOST = 10


def differences(requirements: Sequence[str]) -> list[str]:
    """Return, for each requirement that this Python does not meet, what is installed instead.

    Flower itself is left out: farshore takes its place. Requirements for other systems, and those that cannot be read,
    are left out too.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for text in requirements:
        try:
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except (InvalidRequirement, ValueError):
            continue
        if not applies or requirement.name.lower() == "flwr":
            continue
        version = installed(requirement.name)
        if not version:
            found.append(f"{requirement.name} is not installed; the app asks for '{text}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} is installed; the app asks for '{text}'")
    return [*found[:_MOST], *([f"and {len(found) - _MOST} more"] if len(found) > _MOST else [])]
