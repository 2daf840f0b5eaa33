"""``farshore doctor``: check whether this machine can be a server or a node."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for a server.")] = 50051,
    home: Annotated[Path | None, typer.Option(help="Folder with all homes [~/.farshore].")] = None,
    json_: Json = False,
) -> None:
    """Check versions, extras, port, clock, certificates, disk, TLS and gloo; exit with the first failure's code."""
    from ..core.paths import farshore_home
    from .checks import run_checks

    checks = run_checks((home or farshore_home()).expanduser(), port)
    broken = [check for check in checks if check.state == "broken"]
    if json_:
        emit({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        labels = {"ok": "ok     ", "absent": "absent ", "broken": "BROKEN "}
        width = max(len(check.name) for check in checks)
        for check in checks:
            say(f"{labels[check.state]} {check.name:<{width}} {check.detail}")
            if check.hint:
                say(f"{'':>{width + 9}}try: {check.hint}")
        say(f"{len(broken)} of {len(checks)} checks failed" if broken else "all checks passed")
    if broken:
        raise typer.Exit(int(broken[0].exit_code))
