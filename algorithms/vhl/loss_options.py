"""Weights and switches of VHL's loss, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LossOptions(BaseModel):
    """Weights and switches of the loss; the defaults are the published ones (specification of VHL §3.2, §3.6)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(1.0, ge=0, description="a_v, of the cross-entropy on virtual images")
    align_weight: float = Field(1.0, ge=0, description="a_a, of pulling natural features toward virtual ones")
    noise_weight: float = Field(0.1, ge=0, description="a_n, of keeping virtual classes compact and apart")
    domain_weight: float = Field(0.0, ge=0, description="of the mean distance of the i-th natural and virtual features")
    temperature: float = Field(0.07, gt=0, description="tau of both contrastive terms")
    align_epochs: int = Field(5, ge=0, description="E_a: what looks at features acts in so many first local epochs")
    detach: bool = Field(True, description="virtual features stand still while natural ones are pulled")
    class_match: bool = Field(True, description="virtual class c is natural class c where features are aligned")
    label_style: Literal["extra", "patch"] = Field(
        "extra", description="virtual classes have outputs of their own, or share those of the natural classes"
    )
    feature_map: Literal["none", "random", "orthogonal"] = Field(
        "none", description="fixed map of the virtual features before natural ones are aligned to them"
    )
    gaussian_anchors: bool = Field(False, description="align to fixed Gaussians instead of virtual images (a control)")
