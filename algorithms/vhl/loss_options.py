"""Weights and switches of VHL's loss; importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LossOptions(BaseModel):
    """Weights and switches of the loss, with the defaults of the paper's code (``docs/methods/vhl.md``, section 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(1.0, ge=0, description="a_v, weight of the cross-entropy on virtual images")
    align_weight: float = Field(1.0, ge=0, description="a_a, weight of the contrastive alignment of natural features")
    noise_weight: float = Field(0.1, ge=0, description="a_n, weight of the contrastive term among virtual features")
    domain_weight: float = Field(
        0.0, ge=0, description="a_d, weight of the mean distance between the i-th natural and virtual features"
    )
    temperature: float = Field(0.07, gt=0, description="tau of both contrastive terms")
    align_epochs: int = Field(5, ge=0, description="E_a, local epochs at the start of a round that use feature terms")
    detach: bool = Field(True, description="no gradient of the alignment flows into virtual features")
    class_match: bool = Field(True, description="virtual class c counts as natural class c in the alignment")
    label_style: Literal["extra", "patch"] = Field(
        "extra", description="virtual classes have outputs of their own, or share those of the natural classes"
    )
    feature_map: Literal["none", "random", "orthogonal"] = Field(
        "none", description="fixed linear map of the virtual features before the alignment"
    )
    gaussian_anchors: bool = Field(
        False, description="a control: align to fixed Gaussians instead of features of virtual images"
    )
