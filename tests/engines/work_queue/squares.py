"""A small queue for tests: squares of numbers, with items that fail, wait, or stop, as their settings say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from farshore.core.session import ServerSession
from farshore.engines.work_queue.config import WorkQueueConfig
from farshore.engines.work_queue.item import ItemResult, Outcome, WorkItem
from farshore.engines.work_queue.workload import Job, WorkQueueWorkload


class SquaresConfig(WorkQueueConfig):
    """``waves``: how often as many items again follow; ``hold``: items that wait for a file of this name."""

    items: int = 20
    waves: int = 1
    pause: float = 0.0
    fail: tuple[int, ...] = ()
    hold: dict[int, str] = {}  # noqa: RUF012 - of pydantic
    folder: str = "."
    inputs: tuple[str, ...] = ()


class Squares(WorkQueueWorkload[SquaresConfig]):
    """Returns ``n^2`` and a random vector; notes who worked on what in ``folder``."""

    name, summary = "squares", "computes squares"
    config: type[BaseModel] = SquaresConfig

    def inputs(self, config: SquaresConfig) -> Sequence[str]:
        return config.inputs

    def items(
        self, config: SquaresConfig, inputs: Mapping[str, str], results: Sequence[ItemResult]
    ) -> Sequence[WorkItem]:
        wave = len(results) // config.items
        if wave == config.waves:
            return ()
        return [WorkItem({"number": wave * config.items + n}, n, inputs) for n in range(config.items)]

    def perform(self, config: SquaresConfig, job: Job) -> Outcome:
        number = int(job.item.config["number"])
        log = Path(config.folder) / "work.txt"
        with log.open("a") as file:
            file.write(f"{number}\n")
        time.sleep(config.pause)
        if (name := config.hold.get(number)) is not None and not (Path(config.folder) / name).exists():
            (Path(config.folder) / name).touch()
            while True:  # a straggler, until it is cancelled
                job.cancellation.check()
                time.sleep(0.01)
        if number in config.fail:
            raise ValueError(f"{number} is unlucky")
        text = "".join(job.find(name).read_text() for name in sorted(job.item.inputs))
        vector = np.random.default_rng(job.item.seed).standard_normal(3)
        return Outcome({"square": number**2, "third": number / 3, "text": text}, {"work_seconds": 1.0}, {"v": vector})

    def summarize(self, config: SquaresConfig, results: Sequence[ItemResult], session: ServerSession) -> dict[str, Any]:
        good = [result.outcome for result in results if result.outcome is not None]
        failed = [result for result in results if result.error]
        return {
            "squares": [outcome.metrics["square"] for outcome in good],
            "thirds": [outcome.metrics["third"] for outcome in good],
            "texts": sorted({str(outcome.metrics["text"]) for outcome in good}),
            "vectors": [outcome.tensors["v"].tolist() for outcome in good],
            "items": len(results),
            "failed_items": len(failed),
            "errors": {str(result.index): [result.error, result.attempts] for result in failed},
        }


WORKLOAD = Squares()


def work_done(folder: Path) -> list[int]:
    """The numbers that were worked on, sorted; twice if twice."""
    return sorted(map(int, (folder / "work.txt").read_text().split()))
