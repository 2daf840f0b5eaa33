"""DP-KFAC on nodes: a data-parallel run whose gradients are preconditioned by their layers' owners."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from ...engines.data_parallel.config import DataParallel
from ...engines.data_parallel.workload import DataParallelWorkload
from .config import DPKFACRun

if TYPE_CHECKING:
    from ...engines.data_parallel.training import Make


class DPKFACWorkload(DataParallelWorkload):
    """Second-order training spread over nodes, with the traffic of plain SGD."""

    name = "dp_kfac"
    summary = "second-order training spread over nodes, with the traffic of plain SGD; KAISA's schemes beside it"
    config: type[BaseModel] = DPKFACRun

    def preconditioner(self, config: DataParallel, ranks: int) -> Make:
        """K-FAC by the layers' owners."""
        from .node_adapter import NodeAdapter

        return partial(NodeAdapter, cast(DPKFACRun, config))


WORKLOAD = DPKFACWorkload()
