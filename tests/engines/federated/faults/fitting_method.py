"""Methods with a plan of what befalls whom: keyed by place in the run, done once in the life of the plan's folder.

Places are ``"b asked 2"``, ``"b trained 2"``, ``"b sent 2"`` on nodes, and ``"server begins"``, ``"server folds 2 1"``
(before the first update of round 2 is added), ``"server before saving 2"``, ``"server saved 2"``.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from farshore.algorithms.vhl.config import VHL
from farshore.algorithms.vhl.workload import VHLWorkload
from farshore.core.message import Message, Tensor
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FedAvg, Scaffold
from farshore.engines.federated.supervised import Supervised
from farshore.engines.federated.workload import FederatedWorkload
from farshore.wire.limits import Limits


class Config(FederatedConfig):
    method: str = "fedavg"
    width: int = 8
    folder: str
    plan: dict[str, str] = Field(default_factory=dict)


def befall(config: Any, place: str) -> str:
    """Let happen what is planned for a place, once; returns what is left to do for whoever asks."""
    what = config.plan.get(place, "")
    try:
        if what:
            (Path(config.folder) / place.replace(" ", "-")).touch(exist_ok=False)
    except FileExistsError:
        return ""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "kill server":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    elif what == "hold":
        until((Path(config.folder) / "release").exists)
    elif what == "raise":
        raise ValueError("the user's own mistake")
    elif what == "exit":
        raise SystemExit(3)
    elif what == "print":
        print("many words " * 200_000)
    else:
        return what
    return ""


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not what():
        if time.monotonic() > end:
            raise RuntimeError("what a plan waits for does not come")
        time.sleep(0.02)


def spoil(message: Message, what: str) -> Message:
    """An update that must not be added."""
    array = message.array("floats")
    bad = {
        "nan": lambda: np.full_like(array, np.nan),
        "inf": lambda: np.where(np.arange(array.size) == 1, np.float32("inf"), array),
        "shape": lambda: array[:-1],
        "dtype": lambda: array.astype(np.float64),
        "huge": lambda: np.full_like(array, 3e38),
        "far": lambda: array + np.float32(1000),
    }
    if what in bad:
        return replace(message, tensors={**message.tensors, "floats": Tensor(bad[what]())})
    if what == "many tensors":
        return replace(message, tensors={f"t{i}": Tensor(array[:1]) for i in range(5000)})
    return replace(message, round=message.round + 1) if what == "round" else message


class Sending:
    """A node's channel on which what is sent meets its fate."""

    def __init__(self, session: Any, config: Any) -> None:
        self._channel, self._config, self._node = session.channel, config, session.node
        self.receive = session.channel.receive

    def send(self, message: Message, timeout: float | None = None) -> None:
        if message.kind != "update":
            return self._channel.send(message, timeout)
        what = befall(self._config, f"{self._node} trained {message.round}")
        if what == "many tensors":
            self._channel.limits = Limits(tensors=1 << 20)
        if what in ("long header", "long payload"):
            self._lie(what)
        self._channel.send(spoil(message, what), timeout)
        if befall(self._config, f"{self._node} sent {message.round}") == "kill when taken":
            self._wait_until_taken()
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    def _wait_until_taken(self) -> None:
        self._channel.drained()

    def _lie(self, what: str) -> None:
        """Announce in the prefixes of frames, from now on, more than may be."""
        cut = self._channel._cut
        place, form, length = (8, "<I", 1 << 21) if what == "long header" else (12, "<Q", 1 << 40)

        def lying(*args: Any) -> tuple[bytes, ...]:
            first, *rest = cut(*args)
            return (first[:place] + struct.pack(form, length) + first[place + struct.calcsize(form) :], *rest)

        self._channel._cut = lying


class Planned(FederatedWorkload[Any]):
    """The programs of a workload, to which befalls what is planned."""

    def node_program(self, session: Any, config: Any) -> None:
        task, channel, node = self.task, session.channel, session.node
        session.channel = Sending(session, config)

        def planned(*args: Any) -> Any:
            made = task(*args)
            work = made.work

            def planned_work(flat: Any, client: int, round_index: int) -> Any:
                befall(config, f"{node} asked {round_index}")
                return work(flat, client, round_index)

            made.work = planned_work
            return made

        self.task = planned  # type: ignore[method-assign]
        super().node_program(session, config)
        session.channel = channel

    def server_program(self, session: Any, config: Any) -> dict[str, Any]:
        save, codec = session.save_checkpoint, self.codec

        def planned_save(step: int, tensors: Any, meta: Any) -> None:
            befall(config, f"server before saving {step}")
            save(step, tensors, meta)
            what, _, node = befall(config, f"server saved {step}").rpartition(" ")
            if what == "see the loss of":
                until(lambda: session.channels[node].stopped)

        def planned_codec(*args: Any) -> Any:
            made, read = codec(*args), Counter[int]()
            reading = made.read

            def planned_read(message: Message, round_index: int, *more: Any) -> Any:
                read[round_index] += 1
                befall(config, f"server folds {round_index} {read[round_index]}")
                return reading(message, round_index, *more)

            made.read = planned_read
            return made

        session.save_checkpoint, self.codec = planned_save, planned_codec  # type: ignore[method-assign]
        befall(config, "server begins")
        return super().server_program(session, config)


class Fitting(Planned):
    name, summary, config = "fitting", "three lines to fit", Config

    def task(self, config: Config, seed: Any, find: Any, population: int) -> Any:
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(60, 6, generator=generator)
        y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
        w = config.width
        build = lambda: nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 3))  # noqa: E731
        method = (lambda _: Scaffold()) if config.method == "scaffold" else (lambda _: FedAvg())
        parts = [np.arange(c, 60, population) for c in range(population)]
        return Supervised(x, y, x, y, parts, seed, build, lambda n: Sgd(0.1), method, batch=8)


class VHLConfig(VHL):
    folder: str
    plan: dict[str, str] = Field(default_factory=dict)


class PlannedVHL(Planned, VHLWorkload):
    name, config = "planned_vhl", VHLConfig


FITTING, VIRTUAL = Fitting(), PlannedVHL()
