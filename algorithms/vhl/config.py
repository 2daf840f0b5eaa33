"""Settings of federated image classification with and without VHL; the defaults are the digits demonstration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ...data.partition import Partition
from ...engines.federated.config import FederatedConfig
from .loss_options import LossOptions

Method = Literal["fedavg", "fedprox", "scaffold", "fednova"]


class Virtual(LossOptions):
    """Settings of the virtual data and of the loss (``docs/methods/vhl.md``, sections 2 to 4)."""

    enabled: bool = Field(True, description="train on virtual data too; off: the base method alone")
    generator: Literal["upsampled_noise", "conv_decoder", "stylegan2"] = "upsampled_noise"
    per_class: int = Field(200, ge=1, description="virtual images per class, m")
    classes: int = Field(0, ge=0, description="virtual classes, C_v; 0 = as many as natural classes")
    distribution: Literal["ship", "seed"] | None = Field(
        None,
        description="ship: the server sends the virtual images; seed: clients generate them; by default seed for "
        "upsampled_noise, which is bit-exact on every machine, and ship for network generators",
    )
    batch: int = Field(32, ge=1, description="virtual images per step, B_v")
    bn: Literal["mixed", "split"] = Field(
        "mixed", description="batch norm statistics over both halves of a batch, or over each half separately"
    )
    shuffle_labels: bool = Field(False, description="a control: shuffle the labels, so that classes are not separable")
    server_retrain: int = Field(
        0, ge=0, description="server steps on virtual images after each aggregation; 50 in the published code"
    )
    feature_layer: Literal["last", "layer1", "layer2", "layer3", "layer4"] = Field(
        "last", description="features that are aligned: the head's input, or the pooled maps of a stage"
    )

    @property
    def has_images(self) -> bool:
        """Whether clients train on virtual images; Gaussian anchors need none."""
        return self.enabled and not self.gaussian_anchors

    @property
    def ships(self) -> bool:
        """Whether the server sends the virtual images to the clients."""
        return (self.distribution or ("seed" if self.generator == "upsampled_noise" else "ship")) == "ship"


class VHL(FederatedConfig):
    """Settings of a run of the workload ``vhl``."""

    method: Method = "fedavg"
    virtual: Virtual = Virtual()

    dataset: str = Field("digits", description="digits, mnist, fmnist, cifar10, cifar100, svhn, or another name")
    partition: Partition = Partition(kind="lda", alpha=0.05, min_size=10)
    model: Literal["conv3", "lenet", "resnet10", "resnet18", "resnet50"] = "conv3"
    norm: Literal["batch", "group"] = "batch"
    channels: Literal["natural", "three"] = Field("natural", description="three: repeat the channel of gray images")
    normalize: Literal["matched", "official"] = Field(
        "matched", description="scale natural images like virtual ones, or by the data set's published statistics"
    )
    augment: Literal["none", "official"] = Field(
        "none", description="official: published crop, flip and Cutout for both kinds of images; FMNIST resized to 32"
    )

    local_epochs: int = Field(2, ge=1, description="E")
    batch: int = Field(32, ge=2, description="natural images per step, B")
    lr: float = Field(0.3, gt=0)
    lr_decay: float = Field(0.992, gt=0, le=1, description="factor per tick of lr_clock")
    lr_clock: Literal["rounds", "participation"] = Field(
        "rounds", description="decay the learning rate in every round, or in every round that the client takes part in"
    )
    momentum: float = Field(0.0, ge=0, lt=1)
    client_momentum: Literal["reset", "keep"] = Field(
        "reset", description="keep: clients keep their momentum buffers from round to round"
    )
    weight_decay: float = Field(1e-4, ge=0)
    mu: float = Field(0.1, ge=0, description="weight of FedProx's proximal term")
    server_lr: float = Field(1.0, gt=0, description="SCAFFOLD's server learning rate, eta_g")
    scaffold_option: Literal[1, 2] = Field(
        2,
        description="SCAFFOLD's control variate of a client; 1: gradient of all its data at the round's state, which "
        "takes one more pass over them (1/E more computation); 2: from the round's own steps, at no cost",
    )
    scaffold_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="replaces momentum for SCAFFOLD's clients; option 2 then divides by A_k (see FedNova), not by T",
    )

    divergence: bool = Field(True, description="report the spread of the clients' states in each round")
    targets: tuple[float, ...] = Field(
        (), description="accuracies for which the first round and the bytes until then are reported"
    )

    @model_validator(mode="after")
    def _participation_needs_cohorts(self) -> Self:
        if self.lr_clock == "participation" and self.schedule != "sync":
            raise ValueError("lr_clock 'participation' counts cohorts, which only schedule 'sync' draws")
        return self

    @model_validator(mode="after")
    def _settings_are_compatible(self) -> Self:
        if self.virtual.server_retrain and not self.virtual.has_images:
            raise ValueError("virtual.server_retrain needs virtual images: set virtual.enabled, not gaussian_anchors")
        if self.method == "scaffold" and self.scaffold_option == 1 and self.scaffold_momentum:
            # Corrections are added after momentum, so plain gradients do not cancel the momentum-scaled drift.
            raise ValueError("scaffold_option 1 needs scaffold_momentum 0; use option 2 with momentum")
        return self

    @property
    def requires_seeded_cohorts(self) -> bool:
        """See :attr:`FederatedConfig.requires_seeded_cohorts`."""
        return self.lr_clock == "participation"
