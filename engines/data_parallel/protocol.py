"""The messages of a data-parallel run, from rank 0 to the server program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.control import Control
from ...core.message import Scalar
from ..collective.protocol import End


@dataclass(frozen=True, slots=True)
class Figures(Control, what="figures"):
    """Metrics of the message's step; those of training steps contain ``total``, the number of steps, as an int."""

    values: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Trained(End):
    """A rank has trained its last step; rank 0 reports test metrics, ``steps`` and ``parameters``."""

    values: Mapping[str, Scalar] = field(default_factory=dict)
