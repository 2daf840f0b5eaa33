"""The ``dp_kfac`` workload: a data-parallel run whose gradients are preconditioned by the owners of their layers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from ...engines.data_parallel.config import DataParallelConfig
from ...engines.data_parallel.workload import DataParallelWorkload
from .config import DPKFACConfig

if TYPE_CHECKING:
    from ...engines.data_parallel.training import PreconditionerFactory


class DPKFACWorkload(DataParallelWorkload):
    """Second-order training distributed over nodes, with the traffic of plain SGD."""

    name = "dp_kfac"
    summary = "second-order training distributed over nodes, with the traffic of plain SGD; KAISA's schemes to compare"
    config: type[BaseModel] = DPKFACConfig

    def preconditioner_factory(self, config: DataParallelConfig, ranks: int) -> PreconditionerFactory:
        """Return the factory of the K-FAC preconditioner."""
        from .node_adapter import NodeAdapter

        return partial(NodeAdapter, cast(DPKFACConfig, config))


WORKLOAD = DPKFACWorkload()
