"""Workloads with planned faults by place in the run; each fault happens once per plan folder.

Places are ``"b starts 2"``, ``"b trained 2"``, ``"b sent 2"`` on nodes, and ``"server starts"``, ``"server adds 2 1"``
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
from farshore.engines.federated.drift_correction import Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FedAvg
from farshore.engines.federated.supervised import Supervised
from farshore.engines.federated.workload import FederatedWorkload
from farshore.wire.limits import Limits


class Config(FederatedConfig):
    method: str = "fedavg"
    width: int = 8
    folder: str
    plan: dict[str, str] = Field(default_factory=dict)


def trigger(config: Any, place: str) -> str:
    """Trigger the fault planned for a place, once; return the name of a fault left to the caller, if any."""
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


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the condition of a plan was not met within 120 s")
        time.sleep(0.02)


def spoil(message: Message, what: str) -> Message:
    """Make an update invalid."""
    if "floats" not in message.tensors:  # the node has said that it cannot train
        return message
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


class FaultyChannel:
    """A node's channel that triggers the planned faults when updates are sent."""

    def __init__(self, session: Any, config: Any) -> None:
        self._channel, self._config, self._node = session.channel, config, session.node
        self.receive, self.expect = session.channel.receive, session.channel.expect

    def send(self, message: Message, timeout: float | None = None) -> None:
        if message.kind != "update":
            return self._channel.send(message, timeout)
        what = trigger(self._config, f"{self._node} trained {message.round}")
        if what == "many tensors":
            self._channel.limits = Limits(tensors=1 << 20)
        if what in ("long header", "long payload"):
            self._announce_too_much(what)
        self._channel.send(spoil(message, what), timeout)
        if trigger(self._config, f"{self._node} sent {message.round}") == "kill when taken":
            self._wait_until_taken()
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    def _wait_until_taken(self) -> None:
        self._channel.drained()

    def _announce_too_much(self, what: str) -> None:
        """From now on, announce larger sizes in frame prefixes than the limits allow."""
        cut = self._channel._cut
        place, form, length = (8, "<I", 1 << 21) if what == "long header" else (12, "<Q", 1 << 40)

        def forged(*args: Any) -> tuple[bytes, ...]:
            first, *rest = cut(*args)
            return (first[:place] + struct.pack(form, length) + first[place + struct.calcsize(form) :], *rest)

        self._channel._cut = forged


class FaultyWorkload(FederatedWorkload[Any]):
    """The programs of a workload, with planned faults."""

    def node_program(self, session: Any, config: Any) -> None:
        task, channel, node = self.task, session.channel, session.node
        session.channel = FaultyChannel(session, config)

        def planned(*args: Any) -> Any:
            made = task(*args)
            work = made.work

            def planned_work(flat: Any, client: int, round_index: int) -> Any:
                trigger(config, f"{node} starts {round_index}")
                return work(flat, client, round_index)

            made.work = planned_work
            return made

        self.task = planned  # type: ignore[method-assign]
        super().node_program(session, config)
        session.channel = channel

    def server_program(self, session: Any, config: Any) -> dict[str, Any]:
        save, codec = session.save_checkpoint, self.codec

        def planned_save(step: int, tensors: Any, meta: Any) -> None:
            trigger(config, f"server before saving {step}")
            save(step, tensors, meta)
            what, _, node = trigger(config, f"server saved {step}").rpartition(" ")
            if what == "see the loss of":
                until(lambda: session.channels[node].stopped)

        def planned_codec(*args: Any) -> Any:
            made, read = codec(*args), Counter[int]()
            reading = made.decode_update

            def planned_read(message: Message, round_index: int, *more: Any) -> Any:
                read[round_index] += 1
                trigger(config, f"server adds {round_index} {read[round_index]}")
                return reading(message, round_index, *more)

            made.decode_update = planned_read
            return made

        session.save_checkpoint, self.codec = planned_save, planned_codec  # type: ignore[method-assign]
        trigger(config, "server starts")
        return super().server_program(session, config)


class Fitting(FaultyWorkload):
    name, summary, config = "fitting", "a small classifier with planned faults", Config

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


class FaultyVHL(FaultyWorkload, VHLWorkload):
    name, config = "planned_vhl", VHLConfig


FITTING, VIRTUAL = Fitting(), FaultyVHL()
