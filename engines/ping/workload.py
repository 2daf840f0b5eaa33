"""The ``ping`` workload. Both ends chain a digest over all blocks, which detects lost, repeated and changed bytes."""

from __future__ import annotations

import hashlib
import time
from statistics import median
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel

from ...core.clock import clock_of
from ...core.errors import RunFailedError
from ...core.message import Array
from ...core.session import NodeSession, ServerSession
from ...core.traffic_plan import Rehearsal
from .config import PingConfig
from .protocol import Block, Echo, Ping, block_tensors, read, read_block

_START = bytes(32)
_SERVER = "the server"


class PingWorkload:
    """Round-trip time and throughput; see :class:`PingConfig`."""

    name = "ping"
    summary = "measure round-trip time and throughput between the server and its nodes"
    config: type[BaseModel] = PingConfig
    on_lost_node: Literal["restart", "continue"] = "restart"
    uses_torch = False

    def node_data(self, config: BaseModel) -> tuple[tuple[str, ...], ...]:
        """Return no data set: the blocks are drawn from the seed."""
        return ()

    def rehearsal(self, config: BaseModel) -> Rehearsal:
        """Rehearse one round: all rounds send the same."""
        settings = cast(PingConfig, config)
        short = settings.model_copy(update={"rounds": 1, "pause_ms": 0})
        return Rehearsal(short, "round", {1: range(1, settings.rounds + 1)})

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Measure every node in turn, ``rounds`` times; check the digest of each echo."""
        settings = cast(PingConfig, config)
        digests = dict.fromkeys(session.channels, _START)
        first = 0
        if session.resume_step is not None:
            tensors, _ = session.load_checkpoint(session.resume_step)
            digests = {node: tensors[node].tobytes() for node in session.channels}
            first = session.resume_step
        trips: dict[str, list[float]] = {node: [] for node in session.channels}
        rates: dict[str, list[float]] = {node: [] for node in session.channels}
        for done in range(first + 1, settings.rounds + 1):
            session.check_cancelled()
            for node in session.channels:
                trip, rate, digests[node] = _measure(session, node, done, settings, digests[node])
                trips[node].append(trip)
                rates[node].append(rate)
            latest = {"rtt_ms": 1e3 * max(t[-1] for t in trips.values())}
            session.metrics(done, **latest)
            session.progress(done, settings.rounds, **latest)
            if done % settings.checkpoint_every == 0:
                session.save_checkpoint(done, {n: _as_array(d) for n, d in digests.items()}, {})
            if settings.pause_ms:
                time.sleep(settings.pause_ms / 1e3)
        nodes = {n: {"rtt_ms": _ms(trips[n]), "echo_megabytes_per_second": _median(rates[n])} for n in trips}
        return {"checksum": _chain(*digests.values()).hex(), "nodes": nodes}

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Echo every block with the digest of all blocks so far."""
        settings = cast(PingConfig, config)
        digest, first = _START, 0
        if session.resume_step is not None:
            digest = session.load_checkpoint(session.resume_step)[0]["digest"].tobytes()
            first = session.resume_step
        for done in range(first + 1, settings.rounds + 1):
            read(Ping, session.channel.receive(), done, _SERVER)
            session.channel.send(Ping().message(round=done))
            message = session.channel.receive()
            read(Block, message, done, _SERVER)
            block = read_block(message, _SERVER)
            digest = _chain(digest, block.tobytes())
            session.channel.send(Echo(digest).message(round=done, tensors=block_tensors(block)))
            if done % settings.checkpoint_every == 0:
                session.save_checkpoint(done, {"digest": _as_array(digest)}, {})


def _measure(
    session: ServerSession, node: str, round_index: int, settings: PingConfig, digest: bytes
) -> tuple[float, float, bytes]:
    """Run one round with one node; return seconds of an empty round trip, MB/s (10^6 bytes) echoed, and the digest."""
    channel = session.channels[node]
    block = session.run.seed.child("round", round_index, "node", node).numpy().bytes(settings.kilobytes << 10)
    expected = _chain(digest, block)
    clock = clock_of(session)
    start = clock()
    channel.send(Ping().message(round=round_index))
    read(Ping, channel.receive(), round_index, f"node {node}")
    middle = clock()
    channel.send(Block().message(round=round_index, tensors=block_tensors(np.frombuffer(block, np.uint8))))
    message = channel.receive()
    end = clock()
    echo = read(Echo, message, round_index, f"node {node}")
    echoed = read_block(message, f"node {node}").tobytes()
    if echo.digest != expected or echoed != block:
        raise RunFailedError(f"node {node}, round {round_index}: the echo differs from the block sent")
    seconds = end - middle  # may be zero in virtual time
    return middle - start, 2 * len(block) / seconds / 1e6 if seconds else 0.0, expected


def _chain(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


def _as_array(digest: bytes) -> Array:
    return np.frombuffer(digest, np.uint8)


def _ms(seconds: list[float]) -> float:
    return round(1e3 * _median(seconds), 3)


def _median(values: list[float]) -> float:
    return round(median(values), 6) if values else 0.0


WORKLOAD = PingWorkload()
