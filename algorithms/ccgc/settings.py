"""Settings of the method itself, without those of a run."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

#: Scores of a clustering without labels; see ``selection.py``.
Score: TypeAlias = Literal["inertia_ratio", "silhouette", "stability", "modularity", "conductance", "agreement"]
#: How the result is chosen without labels: the best by a score, or what the later clusterings have in common.
Rule: TypeAlias = Literal[Score, "consensus"]


class CCGCSettings(BaseModel):
    """Hyperparameters of CCGC and its ablations; symbols are those of ``docs/methods/ccgc.md``."""

    model_config = ConfigDict(extra="forbid")

    clusters: int = Field(0, ge=0, description="number of clusters, K; 0: the number of true classes")
    dim: int = Field(500, ge=1, description="size of an embedding, d")
    epochs: int = Field(400, ge=1)
    lr: float = Field(1e-4, ge=0, description="learning rate of Adam; air-traffic graphs need 1e-3")
    smoothing: int = Field(4, ge=0, description="hops of the low-pass filter, t; 0: off")
    warmup: int = Field(51, ge=0, description="first epochs, which align the views without clusters")
    kmeans_every: int = Field(10, ge=1, description="epochs between clusterings")
    tau: float = Field(0.5, gt=0, le=1, description="share of the nodes that are confident")
    alpha: float = Field(0.5, ge=0, description="weight of the negative loss")
    subsample: float = Field(
        0.8, gt=0, le=1, description="share of a cluster's confident nodes in the pairs of an epoch"
    )
    views: Literal["unshared", "shared"] = "unshared"
    positives: Literal["cluster", "self"] = "cluster"
    negatives: Literal["centers", "none", "random_nodes"] = "centers"
    pos_reduction: Literal["sum", "mean"] = "sum"
    accumulate_grads: bool = Field(True, description="never zero the gradients, as the published code does")
    skip_first_cluster: bool = Field(
        False, description="leave the first cluster out of the loss, as the published code does"
    )
    kmeans: Literal["reference", "sklearn"] = "reference"
    kmeans_starts: int = Field(
        1, ge=1, description="runs of K-means per clustering; the one of the least inertia counts"
    )
    input_pca: int = Field(0, ge=0, description="principal components that replace the smoothed attributes; 0: off")
    select: Literal["last", "best_unsup", "best_oracle"] = "best_unsup"
    rule: Rule = "consensus"
    all_rules: bool = Field(False, description="score every clustering by all rules, to compare them")
