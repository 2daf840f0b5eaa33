"""VHL's loss: cross-entropy on natural and virtual images, and alignment of natural with virtual features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...core.errors import ConfigError
from .anchors import anchor_means, draw_anchors, feature_map
from .contrast import at_least_fp32, normalize_rows, supervised_contrastive
from .loss_options import LossOptions


@dataclass(frozen=True, slots=True)
class LossParts:
    """The loss of a batch and its terms; scalars with gradients.

    Attributes
    ----------
    total : Tensor
        natural + a_v·virtual + a_a·align + a_n·noise + a_d·domain.
    natural, virtual : Tensor
        Cross-entropy of natural and of virtual images.
    align, noise : Tensor
        Contrastive terms: of natural and virtual features, and of virtual features alone.
    domain : Tensor
        Mean distance between the i-th natural and the i-th virtual feature.

    Notes
    -----
    A term of weight 0, or after its last epoch, is not computed and is 0.
    """

    total: Tensor
    natural: Tensor
    virtual: Tensor
    align: Tensor
    noise: Tensor
    domain: Tensor


class VHLLoss:
    """VHL's loss for any model that returns logits and features (``docs/methods/vhl.md``, section 3).

    Parameters
    ----------
    classes : int
        Natural classes, C.
    virtual_classes : int
        Virtual classes, C_v; C by default.
    options : LossOptions
        Weights and switches.
    seed : int
        Seed of the feature map and of the means of the Gaussian anchors; must be equal on all nodes.

    Raises
    ------
    ConfigError
        ``label_style`` is ``patch`` and there are more virtual than natural classes.
    """

    def __init__(
        self, classes: int, virtual_classes: int = 0, options: LossOptions | None = None, *, seed: int = 0
    ) -> None:
        self.classes = classes
        self.virtual_classes = virtual_classes or classes
        self.options = options or LossOptions()
        self.seed = seed
        self._feature_map: Tensor | None = None
        if self.options.label_style == "patch" and self.virtual_classes > classes:
            raise ConfigError(
                f"{self.virtual_classes} virtual classes cannot share {classes} outputs",
                hint="use label_style=extra or fewer virtual classes",
            )

    def __call__(
        self,
        logits: Tensor,
        features: Tensor,
        y: Tensor,
        y_v: Tensor,
        *,
        epoch: int = 0,
        generator: torch.Generator | None = None,
    ) -> LossParts:
        """Compute the loss of a batch with its natural images first.

        Parameters
        ----------
        logits : Tensor [B + B_v, outputs]
            :attr:`outputs` wide; [B, outputs] with Gaussian anchors.
        features : Tensor [B + B_v, d]
            Not normalized; [B, d] with Gaussian anchors.
        y : Tensor [B] int64
            Natural labels, 0 to C - 1.
        y_v : Tensor [B_v] int64
            Virtual labels, 0 to C_v - 1; with ``label_style="extra"`` the loss adds C to them.
        epoch : int
            Local epoch, from 0.
        generator : torch.Generator, optional
            CPU generator that draws the Gaussian anchors; required with these only.

        Raises
        ------
        ConfigError
            The shapes of logits, features and labels do not agree, or Gaussian anchors have no generator.
        """
        self._check(logits, features, len(y), len(y_v))
        logits = at_least_fp32(logits)
        o, zero, b = self.options, logits.new_zeros(()), len(y)
        images, align_now = not o.gaussian_anchors, epoch < o.align_epochs
        natural = F.cross_entropy(logits[:b], y)
        virtual = align = noise = domain = zero
        if images and o.weight:
            virtual = F.cross_entropy(logits[b:], self.virtual_targets(y_v))
        if align_now and (o.align_weight or o.domain_weight):
            anchors = self._anchors(features[b:] if images else self._gaussians(features, y_v, generator))
            align = self._align(features[:b], anchors, y, y_v) if o.align_weight else zero
            domain = distance(features[:b], anchors) if o.domain_weight else zero
        if align_now and images and o.noise_weight:
            noise = supervised_contrastive(normalize_rows(features[b:]), y_v, o.temperature)
        total = natural + o.weight * virtual + o.align_weight * align + o.noise_weight * noise
        total = total + o.domain_weight * domain if o.domain_weight else total
        return LossParts(total, natural, virtual, align, noise, domain)

    @property
    def outputs(self) -> int:
        """Outputs that the head must have: C + C_v, or C with ``label_style="patch"`` or Gaussian anchors."""
        shared = self.options.label_style == "patch" or self.options.gaussian_anchors
        return self.classes if shared else self.classes + self.virtual_classes

    def virtual_targets(self, y_v: Tensor) -> Tensor:
        """Indices of the outputs for virtual labels ``y_v``."""
        return y_v + self.classes if self.options.label_style == "extra" else y_v

    def _anchors(self, virtual: Tensor) -> Tensor:
        """Virtual features [B_v, d] as the alignment uses them: detached and mapped according to the options."""
        if self.options.detach:
            virtual = virtual.detach()
        with torch.autocast(virtual.device.type, enabled=False):
            return self._mapped(at_least_fp32(virtual))

    def _align(self, natural: Tensor, virtual: Tensor, y: Tensor, y_v: Tensor) -> Tensor:
        """Supervised contrastive loss over natural and virtual features together."""
        z = torch.cat([normalize_rows(natural), normalize_rows(virtual)])
        labels = torch.cat([y, y_v if self.options.class_match else y_v + self.classes])
        return supervised_contrastive(z, labels, self.options.temperature)

    def _mapped(self, virtual: Tensor) -> Tensor:
        """Apply the fixed feature map, if any, to virtual features [B_v, d]."""
        if self.options.feature_map == "none":
            return virtual
        if self._feature_map is None:
            self._feature_map = feature_map(self.options.feature_map, virtual.shape[1], self.seed)
        self._feature_map = self._feature_map.to(virtual)
        return virtual @ self._feature_map

    def _gaussians(self, features: Tensor, y_v: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw Gaussian anchors [B_v, d] for the labels ``y_v``."""
        if generator is None:
            raise ConfigError("gaussian_anchors needs a random generator", hint="pass generator= to the loss")
        means = anchor_means(self.virtual_classes, features.shape[1], self.seed).to(features.device)
        return draw_anchors(means, y_v, generator).to(features.dtype)

    def _check(self, logits: Tensor, features: Tensor, natural: int, virtual: int) -> None:
        """Check the shapes of a batch against the options."""
        rows = natural if self.options.gaussian_anchors else natural + virtual
        if len(logits) != rows or len(features) != rows:
            raise ConfigError(
                f"{len(logits)} logits and {len(features)} features for {natural} natural and {virtual} virtual labels",
                hint="concatenate natural and virtual images in this order (natural ones only for gaussian_anchors)",
            )
        if logits.shape[1] != self.outputs:
            raise ConfigError(
                f"the model has {logits.shape[1]} outputs, the loss needs {self.outputs}",
                hint="add an output per virtual class with widen_head (only for label_style=extra)",
            )


def distance(natural: Tensor, virtual: Tensor) -> Tensor:
    """Mean L2 distance between ``natural[i]`` [B, d] and ``virtual[i]`` [B_v, d] over i < min(B, B_v), in fp32 or fp64.

    Features are not normalized and classes are ignored. This is ``vhl_domain_weight`` of the paper's code; see
    ``docs/methods/vhl.md``, section 3.4.
    """
    pairs = min(len(natural), len(virtual))
    with torch.autocast(natural.device.type, enabled=False):
        difference = at_least_fp32(natural[:pairs]) - at_least_fp32(virtual[:pairs])
        mean: Tensor = torch.linalg.vector_norm(difference, dim=1).mean()
    return mean
