"""Settings of a CCGC run: those of the method, the graph, how nodes share it, and what a run writes."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ...core.devices import DeviceName
from ...engines.collective.config import CollectiveConfig
from .settings import CCGCSettings


class CCGCConfig(CollectiveConfig, CCGCSettings):
    """Configuration of ``ccgc``."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(
        "synthetic", description="synthetic, pyg:CLASS/NAME, or the name of a data set such as cora, bat, eat, amap"
    )
    drop_unlabeled: bool = Field(False, description="leave out nodes without a label, such as 15 of CiteSeer")
    seed: int | None = Field(None, ge=0, description="of weights, K-means and pairs; null: the run's seed")
    device: DeviceName = Field("cpu", description="where nodes compute; auto: on an accelerator, if there is one")
    mode: Literal["rows", "parties"] = Field(
        "rows",
        description="of several nodes; rows: all have the graph and share the training; parties: each owns a part",
    )
    halo: Literal["exact", "drop_cross_edges"] = Field(
        "exact", description="parties: exchange attributes over edges between parties, or ignore these edges"
    )
    partition: Literal["blocks", "random", "regions"] = Field(
        "regions", description="parties: which nodes of the graph each party owns"
    )
    log_every: int = Field(10, ge=1, description="epochs between metrics")
    tsne: bool = Field(False, description="also project the embedding to two dimensions by t-SNE")
