"""``farshore doctor``: is this machine fit to be a server or a node, and if not, what is to be done?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that a server shall use.")] = 50051,
    home: Annotated[Path | None, typer.Option(help="Folder of all homes [~/.farshore].")] = None,
    json_: Json = False,
) -> None:
    """Check versions, extras, port, clock, certificates, disk, TLS, gloo; ends with the first broken one's code."""
    from ..core.paths import base
    from .checks import examine

    checks = examine((home or base()).expanduser(), port)
    broken = [check for check in checks if check.state == "broken"]
    if json_:
        emit({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        signs = {"ok": "ok     ", "absent": "absent ", "broken": "BROKEN "}
        width = max(len(check.name) for check in checks)
        for check in checks:
            say(f"{signs[check.state]} {check.name:<{width}} {check.detail}")
            if check.hint:
                say(f"{'':>{width + 9}}try: {check.hint}")
        say("something is broken" if broken else "all is well")
    if broken:
        raise typer.Exit(int(broken[0].exit_code))
