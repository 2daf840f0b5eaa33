"""The messages of a CCGC run, from rank 0 to the server program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.control import Control, Protocol
from ...core.message import Scalar
from ...engines.collective.protocol import End


@dataclass(frozen=True, slots=True)
class Figures(Control, what="figures"):
    """Metrics after the epoch whose number, from 1, is the message's ``step``."""

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finished(End):
    """A rank has finished; rank 0 adds its result: metrics here, and as tensors labels, embedding and weights."""

    values: Mapping[str, Scalar] = field(default_factory=dict)


FROM_RANK_0: Protocol[Figures] = Protocol(Figures)
