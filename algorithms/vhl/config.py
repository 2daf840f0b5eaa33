"""What a federated run with or without VHL can be told; the defaults are the digits demonstration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ...data.partition import Partition
from ...engines.federated.config import FederatedConfig
from .loss_options import LossOptions

Method = Literal["fedavg", "fedprox", "scaffold", "fednova"]


class Virtual(LossOptions):
    """The virtual data, and the loss that they enter (specification of VHL §3.1, §3.2, §3.6)."""

    enabled: bool = Field(True, description="train on virtual data too; off: the method as it is")
    generator: Literal["upsampled_noise", "conv_decoder", "stylegan2"] = "upsampled_noise"
    per_class: int = Field(200, ge=1, description="virtual images per class, m")
    classes: int = Field(0, ge=0, description="virtual classes, C_v; 0 = as many as natural ones")
    distribution: Literal["ship", "seed"] | None = Field(
        None,
        description="whether clients are sent the virtual images or make them; by default they make "
        "upsampled_noise, which is the same on every machine, and are sent what a network makes",
    )
    batch: int = Field(32, ge=1, description="virtual images per step, B_v")
    bn: Literal["mixed", "split"] = Field("mixed", description="batch statistics of both halves, or of each its own")
    shuffle_labels: bool = Field(False, description="a control: virtual images that are not separable by class")
    server_retrain: int = Field(
        0, ge=0, description="steps on virtual images that the server takes after each aggregation; 50 as published"
    )
    feature_layer: Literal["last", "layer1", "layer2", "layer3", "layer4"] = Field(
        "last", description="where natural and virtual features are aligned: what the head reads, or a stage's maps"
    )

    @property
    def has_images(self) -> bool:
        """Whether clients train on virtual images; Gaussian anchors have none."""
        return self.enabled and not self.gaussian_anchors

    @property
    def ships(self) -> bool:
        """Whether clients are sent the virtual images."""
        return (self.distribution or ("seed" if self.generator == "upsampled_noise" else "ship")) == "ship"


class VHL(FederatedConfig):
    """Configuration of the method."""

    method: Method = "fedavg"
    virtual: Virtual = Virtual()

    dataset: str = Field("digits", description="digits, mnist, fmnist, cifar10, cifar100, svhn, or a data set's name")
    partition: Partition = Partition(kind="lda", alpha=0.05, min_size=10)
    model: Literal["conv3", "lenet", "resnet10", "resnet18", "resnet50"] = "conv3"
    norm: Literal["batch", "group"] = "batch"
    channels: Literal["natural", "three"] = Field("natural", description="three: gray images are repeated thrice")
    normalize: Literal["matched", "official"] = Field(
        "matched", description="natural images scaled as virtual ones are, or as the data set's published recipe says"
    )
    augment: Literal["none", "official"] = Field(
        "none", description="official: crop, flip and Cutout as published, for natural and virtual images; FMNIST at 32"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: the models run under autocast in training")

    local_epochs: int = Field(2, ge=1, description="E")
    batch: int = Field(32, ge=2, description="natural images per step, B")
    lr: float = Field(0.3, gt=0)
    lr_decay: float = Field(0.992, gt=0, le=1, description="factor per tick of lr_clock")
    lr_clock: Literal["rounds", "participation"] = Field(
        "rounds", description="lr falls with every round, or with every round that the client was drawn for"
    )
    momentum: float = Field(0.0, ge=0, lt=1)
    client_momentum: Literal["reset", "keep"] = Field(
        "reset", description="keep: a client's momentum goes on where its last round ended"
    )
    weight_decay: float = Field(1e-4, ge=0)
    mu: float = Field(0.1, ge=0, description="of FedProx's proximal term")
    server_lr: float = Field(1.0, gt=0, description="of SCAFFOLD's server, eta_g")
    scaffold_option: Literal[1, 2] = Field(
        2,
        description="a client's control variate is 1: the gradient of all its data at the round's state, for one more "
        "pass over them (with E epochs, 1/E more computing); 2: what its own steps tell, for nothing",
    )
    scaffold_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="in place of momentum in SCAFFOLD's clients; option 2 then divides by A_k (see FedNova), not by T",
    )

    divergence: bool = Field(True, description="tell how far apart the clients of each round went")
    targets: tuple[float, ...] = Field((), description="accuracies whose first round and bytes are told")

    @model_validator(mode="after")
    def _counts_participations(self) -> Self:
        if self.lr_clock == "participation" and self.schedule != "sync":
            raise ValueError("lr_clock 'participation' counts cohorts, which only schedule 'sync' draws")
        return self

    @model_validator(mode="after")
    def _can_do_what_it_says(self) -> Self:
        if self.virtual.server_retrain and not self.virtual.has_images:
            raise ValueError("virtual.server_retrain needs virtual images, and there are none")
        if self.method == "scaffold" and self.scaffold_option == 1 and self.scaffold_momentum:
            # Corrections come after momentum: plain gradients cannot undo what it has multiplied.
            raise ValueError("scaffold_option 1 needs scaffold_momentum 0; option 2 measures what momentum makes of it")
        return self

    @property
    def requires_seeded_cohorts(self) -> bool:
        """See :class:`FederatedConfig`."""
        return self.lr_clock == "participation"
