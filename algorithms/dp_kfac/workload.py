"""The ``dp_kfac`` workload: a data-parallel run whose gradients are preconditioned by the owners of their layers."""

from __future__ import annotations

from pydantic import BaseModel

from ...engines.data_parallel.image_workload import DataParallelWorkload
from .config import DPKFACConfig


class DPKFACWorkload(DataParallelWorkload):
    """Second-order training distributed over nodes, with the traffic of plain SGD."""

    name = "dp_kfac"
    summary = "second-order training distributed over nodes, with the traffic of plain SGD; KAISA's schemes to compare"
    config: type[BaseModel] = DPKFACConfig


WORKLOAD = DPKFACWorkload()
