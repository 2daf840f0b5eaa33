"""Train the unsplit model in a child process on the same steps, as a reference for the split accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from ..cli.progress import Display, Meter
from ..core.errors import RunFailedError


def train(config: dict[str, Any], seed: int, edges: int, shown: Display) -> dict[str, Any]:
    """Train in a child process and show its progress; returns the result of ``train_unsplit``.

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
        event = json.loads(line)
        if "result" in event:
            result = event["result"]
            continue
        shown.show(meter.read(int(event["step"]), int(event["total"]), event, time.monotonic()))
    return result


def main() -> None:
    """Entry point of the child: reads its job from standard input, prints progress and result as JSON lines."""
    job = json.load(sys.stdin)
    from ..algorithms.split_fine_tuning.config import SplitFineTuning
    from ..algorithms.split_fine_tuning.unsplit import train_unsplit

    def print_progress(step: int, total: int, values: dict[str, float]) -> None:
        print(json.dumps({"step": step, "total": total, **values}), flush=True)

    config = SplitFineTuning.model_validate(job["config"])
    result = train_unsplit(config, job["seed"], job["edges"], on_progress=print_progress)
    print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    main()
