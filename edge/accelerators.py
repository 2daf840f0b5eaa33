"""Lists a machine's accelerators from its drivers, without importing torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..core.nodes import Accelerator

#: AMD's compute devices, one folder each; processors have no SIMD units.
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")
_SECONDS = 10


def accelerators(kfd: Path = _KFD) -> list[Accelerator]:
    """The accelerators that the drivers of this machine report; empty if there are none.

    Parameters
    ----------
    kfd : Path
        Where AMD's driver lists its devices.
    """
    return [*_nvidia(), *_amd(kfd), *_apple()]


def _nvidia() -> Iterator[Accelerator]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return
    arguments = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    for line in done.stdout.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name:
            size = mebibytes.strip()
            yield Accelerator("cuda", name.strip(), int(size) << 20 if size.isdigit() else 0)


def _amd(kfd: Path) -> Iterator[Accelerator]:
    with suppress(OSError):
        for folder in sorted(kfd.glob("*")):
            text = (folder / "properties").read_text()
            properties = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
            if int(properties.get("simd_count", "0")):
                name = (folder / "name").read_text().strip() if (folder / "name").exists() else ""
                yield Accelerator("rocm", name, 0)


def _apple() -> Iterator[Accelerator]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Accelerator("mps", "Apple GPU", 0)
