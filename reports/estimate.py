"""A run's communication before it runs: the flows that its method plans, sized by the wire itself, as a ledger."""

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
from .links import on_links
from .run_report import RunReport, windows_of

#: Sizes of the header change where a number takes one more group of seven bits.
_GROUP = 7


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would send.

    Attributes
    ----------
    report : RunReport
        As of a run that has finished; nothing failed, and nothing was sent twice.
    notes : tuple of str
        What was assumed.
    """

    report: RunReport
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the report's, with ``assumed``."""
        return {**self.report.as_dict(), "assumed": list(self.notes)}


def estimate(plan: TrafficPlan, workload: str, config: Mapping[str, Any], seed: int) -> Estimate:
    """Sum up a plan.

    Parameters
    ----------
    plan : Plan
    workload : str
        The method's name.
    config : Mapping
        Its settings, JSON-able.
    seed : int

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    WireError
        A message would break the wire's limits.
    """
    account = Account.of(planned_ledger(plan))
    volume = communication(account)
    info = {"id": "", "workload": workload, "config": dict(config), "seed": seed, "nodes": list(plan.nodes)}
    report = RunReport(
        info=info,
        state="estimated",
        reason="",
        result=None,
        communication=volume,
        account=account,
        windows=windows_of(account),
        compressions=compressions(volume, plan.baselines),
        links=on_links(account),
        score="",
        curve=None,
        targets=(),
    )
    return Estimate(report, tuple(plan.notes))


def planned_ledger(plan: TrafficPlan) -> Any:
    """The rows that a run would write, as :func:`~farshore.runs.ledger_reader.read_ledger` gives them; times are 0.

    Raises
    ------
    MissingExtraError, WireError
        As :func:`estimate`.
    """
    pa = pyarrow()
    blocks = [_rows(pa, plan, *sized) for flow in plan.flows for sized in _sized(flow, plan.unit)]
    blocks += [_rows(pa, plan, flow, _peer_sizes(flow)) for flow in plan.peers]
    return pa.Table.from_batches(blocks, schema()).unify_dictionaries()


def _sized(flow: Flow, unit: str) -> Iterator[tuple[Flow, dict[str, Any]]]:
    """The flow in parts of equal size: a number takes more bytes the larger it is."""
    groups = np.zeros(len(flow.places), np.int64)
    for bits in range(_GROUP, 64, _GROUP):
        groups += flow.places >= 1 << bits
    groups += flow.places > 0  # zero takes none
    for group in np.unique(groups):
        mine = groups == group
        first = int(flow.places[mine][0])
        yield replace(flow, nodes=flow.nodes[mine], places=flow.places[mine]), _sizes(flow.message, unit, first)


def _sizes(message: Message, unit: str, place: int) -> dict[str, Any]:
    """The ledger's sizes of a message, by the name of the column."""
    at = replace(message, round=place) if unit == "round" else replace(message, step=place)
    packed = pack(at)
    frame = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
    sizes = {"dense_bytes": packed.dense_bytes, "payload_bytes": packed.payload_bytes, "frame_bytes": frame}
    return {**sizes, "encoding": packed.encoding, "kind": at.kind, "micro": at.micro}


def _peer_sizes(flow: PeerFlow) -> dict[str, Any]:
    sizes = dict.fromkeys(("dense_bytes", "payload_bytes", "frame_bytes"), flow.size)
    return {**sizes, "encoding": "raw", "kind": flow.kind}


def _rows(pa: Any, plan: TrafficPlan, flow: Flow | PeerFlow, sizes: Mapping[str, Any]) -> Any:
    count = len(flow.places)
    zeros = np.zeros(count, np.int64)
    texts: Mapping[str, tuple[NDArray[np.int64], Sequence[str]]] = {
        "node": (flow.nodes, plan.nodes),
        "direction": (zeros, [flow.direction if isinstance(flow, Flow) else "peer"]),
        "kind": (zeros, [sizes["kind"]]),
        "encoding": (zeros, [sizes["encoding"]]),
    }
    numbers = {name: np.full(count, sizes.get(name, 0), np.int64) for name in NUMBERS} | {plan.unit: flow.places}
    arrays = [pa.DictionaryArray.from_arrays(texts[n][0].astype(np.int32), list(texts[n][1])) for n in NAMES]
    arrays += [pa.array(numbers[name]) for name in NUMBERS]
    return pa.record_batch([*arrays, pa.array(np.zeros(count))], schema=schema())
