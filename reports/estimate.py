"""Communication estimates: the traffic plan of a method, with message sizes from the wire format, as a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.message import Message
from ..core.traffic_plan import Flow, PeerFlow, TrafficPlan
from ..runs.ledger_reader import NAMES, NUMBERS, pyarrow, schema
from ..wire.frame import PREFIX_BYTES
from ..wire.pack import pack
from .account import Account
from .communication import communication, compressions
from .links import estimate_links
from .run_report import RunReport, windows_of

#: Bits per byte of a varint in the header: larger rounds and steps take more bytes.
_VARINT_BITS = 7


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated communication of a run.

    Attributes
    ----------
    report : RunReport
        As of a finished run without failures and retransmissions.
    notes : tuple of str
        The assumptions.
    """

    report: RunReport
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict: the report's, plus ``assumed``."""
        return {**self.report.as_dict(), "assumed": list(self.notes)}


def estimate(plan: TrafficPlan, workload: str, config: Mapping[str, Any], seed: int) -> Estimate:
    """Build the report of a traffic plan.

    Parameters
    ----------
    plan : TrafficPlan
    workload : str
        Name of the method.
    config : Mapping
        Settings of the method, JSON-serializable.
    seed : int

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    WireError
        A message would exceed the limits of the wire format.
    """
    found = estimate_ledger(planned_ledger(plan), workload, config, seed, plan.nodes, plan.baselines)
    return replace(found, notes=tuple(plan.notes))


def estimate_ledger(
    ledger: Any,
    workload: str,
    config: Mapping[str, Any],
    seed: int,
    nodes: Sequence[str],
    baselines: Mapping[str, int],
) -> Estimate:
    """Build the report of the ledger that a run would write.

    Parameters
    ----------
    ledger : pyarrow.Table
        As of :func:`planned_ledger`.
    workload, config, seed
        As for :func:`estimate`.
    nodes : sequence of str
    baselines : Mapping
        Dense bytes of equivalent training with other methods.
    """
    account = Account.from_table(ledger)
    volume = communication(account)
    info = {"id": "", "workload": workload, "config": dict(config), "seed": seed, "nodes": list(nodes)}
    report = RunReport(
        info=info,
        state="estimated",
        reason="",
        result=None,
        communication=volume,
        account=account,
        windows=windows_of(account),
        compressions=compressions(volume, baselines),
        links=estimate_links(account),
        score="",
        curve=None,
        targets=(),
    )
    return Estimate(report, ())


def planned_ledger(plan: TrafficPlan) -> Any:
    """The ledger that a run would write.

    Returns
    -------
    pyarrow.Table
        The columns of :func:`~farshore.runs.ledger_reader.read_ledger`; times are 0.

    Raises
    ------
    MissingExtraError, WireError
        As :func:`estimate`.
    """
    pa = pyarrow()
    blocks = [_rows(pa, plan, *sized) for flow in plan.flows for sized in _split_by_size(flow, plan.unit)]
    blocks += [_rows(pa, plan, flow, _peer_sizes(flow)) for flow in plan.peers]
    return pa.Table.from_batches(blocks, schema()).unify_dictionaries()


def _split_by_size(flow: Flow, unit: str) -> Iterator[tuple[Flow, dict[str, Any]]]:
    """Split a flow into parts whose messages have equal size, which depends on the varint length of round or step."""
    lengths = np.zeros(len(flow.indices), np.int64)
    for bits in range(_VARINT_BITS, 64, _VARINT_BITS):
        lengths += flow.indices >= 1 << bits
    lengths += flow.indices > 0  # zero is not encoded
    for length in np.unique(lengths):
        selected = lengths == length
        first = int(flow.indices[selected][0])
        part = replace(flow, nodes=flow.nodes[selected], indices=flow.indices[selected])
        yield part, _sizes(flow.message, unit, first)


def _sizes(message: Message, unit: str, number: int) -> dict[str, Any]:
    """The ledger columns of a message in round or step ``number``."""
    numbered = replace(message, round=number) if unit == "round" else replace(message, step=number)
    packed = pack(numbered)
    frame = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
    sizes = {"dense_bytes": packed.dense_bytes, "payload_bytes": packed.payload_bytes, "frame_bytes": frame}
    return {**sizes, "encoding": packed.encoding, "kind": numbered.kind, "micro": numbered.micro}


def _peer_sizes(flow: PeerFlow) -> dict[str, Any]:
    sizes = dict.fromkeys(("dense_bytes", "payload_bytes", "frame_bytes"), flow.size)
    return {**sizes, "encoding": "raw", "kind": flow.kind}


def _rows(pa: Any, plan: TrafficPlan, flow: Flow | PeerFlow, sizes: Mapping[str, Any]) -> Any:
    count = len(flow.indices)
    zeros = np.zeros(count, np.int64)
    texts: Mapping[str, tuple[NDArray[np.int64], Sequence[str]]] = {
        "node": (flow.nodes, plan.nodes),
        "direction": (zeros, [flow.direction if isinstance(flow, Flow) else "peer"]),
        "kind": (zeros, [sizes["kind"]]),
        "encoding": (zeros, [sizes["encoding"]]),
    }
    numbers = {name: np.full(count, sizes.get(name, 0), np.int64) for name in NUMBERS} | {plan.unit: flow.indices}
    arrays = [pa.DictionaryArray.from_arrays(texts[n][0].astype(np.int32), list(texts[n][1])) for n in NAMES]
    arrays += [pa.array(numbers[name]) for name in NUMBERS]
    return pa.record_batch([*arrays, pa.array(np.zeros(count))], schema=schema())
