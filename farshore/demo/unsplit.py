"""The unsplit model, trained in a process of its own on the same steps: what the split accuracy is held against."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from ..cli.progress import Display, Meter
from ..core.errors import RunFailedError


def train(config: dict[str, Any], seed: int, edges: int, shown: Display) -> dict[str, Any]:
    """Train it in a child process and show its progress; returns what ``train_unsplit`` returns.

    Raises
    ------
    RunFailedError
        The child ended without a result.
    """
    command = [sys.executable, "-P", "-m", "farshore.demo.unsplit"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with child.stdin as pipe:
                pipe.write(json.dumps({"config": config, "seed": seed, "edges": edges}))
            result = _watch(child.stdout, shown)
        except BaseException:
            child.kill()
            raise
    if child.returncode or result is None:
        raise RunFailedError(f"training the unsplit model ended with exit code {child.returncode}")
    return result


def _watch(lines: Any, shown: Display) -> dict[str, Any] | None:
    meter, result = Meter(), None
    for line in lines:
        told = json.loads(line)
        if "result" in told:
            result = told["result"]
            continue
        shown.show(meter.read(int(told["step"]), int(told["total"]), told, time.monotonic()))
    return result


def main() -> None:
    """The child: configuration on standard input, a JSON line per step and the result on standard output."""
    asked = json.load(sys.stdin)
    from ..algorithms.split_fine_tuning.config import SplitFineTuning
    from ..algorithms.split_fine_tuning.unsplit import train_unsplit

    def tell(step: int, total: int, figures: dict[str, float]) -> None:
        print(json.dumps({"step": step, "total": total, **figures}), flush=True)

    config = SplitFineTuning.model_validate(asked["config"])
    result = train_unsplit(config, asked["seed"], asked["edges"], on_progress=tell)
    print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    main()
