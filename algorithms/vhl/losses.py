"""What a node minimizes: cross-entropy on both halves of a batch, and natural features near virtual ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...core.errors import ConfigError
from .anchors import anchor_means, draw_anchors, feature_map
from .contrast import at_least_single, supervised_contrastive, to_unit
from .loss_options import LossOptions


@dataclass(frozen=True, slots=True)
class LossParts:
    """A loss and what it is the weighted sum of; scalars with gradients.

    Attributes
    ----------
    total : Tensor
        natural + a_v·virtual + a_a·align + a_n·noise + a_d·domain.
    natural, virtual : Tensor
        Cross-entropies of the two halves.
    align, noise : Tensor
        The two contrastive terms.
    domain : Tensor
        Mean distance of the i-th natural to the i-th virtual feature.

    Notes
    -----
    A term of weight 0, or past its last epoch, is not computed and is 0.
    """

    total: Tensor
    natural: Tensor
    virtual: Tensor
    align: Tensor
    noise: Tensor
    domain: Tensor


class VHLLoss:
    """The loss of one step, for any model with logits and features.

    Parameters
    ----------
    classes : int
        C, natural classes.
    virtual_classes : int
        C_v; C by default.
    options : LossOptions
    seed : int
        Of the feature map and of the Gaussian anchors' means, which must be alike on all nodes.

    Raises
    ------
    ConfigError
        Virtual labels are to share the natural outputs (``label_style=patch``), but there are more of them.
    """

    def __init__(
        self, classes: int, virtual_classes: int = 0, options: LossOptions | None = None, *, seed: int = 0
    ) -> None:
        self.classes = classes
        self.virtual_classes = virtual_classes or classes
        self.options = options or LossOptions()
        self.seed = seed
        self._fixed: Tensor | None = None
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
        """The loss of a batch, its natural half first.

        Parameters
        ----------
        logits : Tensor [B + B_v, outputs]
            :attr:`outputs` wide; of the natural half alone, [B, …], with Gaussian anchors.
        features : Tensor [B + B_v, d]
            What the head reads, not yet normalized; [B, d] with Gaussian anchors.
        y : Tensor [B] int64
            Natural labels, 0 to C - 1.
        y_v : Tensor [B_v] int64
            Virtual labels, 0 to C_v - 1; they are shifted here where they have outputs of their own.
        epoch : int
            Local epoch, from 0.
        generator : torch.Generator, optional
            On the CPU; draws the Gaussian anchors, and is needed for them only.

        Raises
        ------
        ConfigError
            Logits and labels do not belong together, or Gaussian anchors have no generator.
        """
        self._check(logits, features, len(y), len(y_v))
        logits = at_least_single(logits)
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
            noise = supervised_contrastive(to_unit(features[b:]), y_v, o.temperature)
        total = natural + o.weight * virtual + o.align_weight * align + o.noise_weight * noise
        total = total + o.domain_weight * domain if o.domain_weight else total
        return LossParts(total, natural, virtual, align, noise, domain)

    @property
    def outputs(self) -> int:
        """Outputs that the head has: C + C_v, or C where virtual classes share the natural ones or have no images."""
        shared = self.options.label_style == "patch" or self.options.gaussian_anchors
        return self.classes if shared else self.classes + self.virtual_classes

    def virtual_targets(self, y_v: Tensor) -> Tensor:
        """The outputs that virtual labels ``y_v`` stand for."""
        return y_v + self.classes if self.options.label_style == "extra" else y_v

    def _anchors(self, virtual: Tensor) -> Tensor:
        """What natural features are pulled to: virtual ones [B_v, d], standing still and mapped as the options say."""
        if self.options.detach:
            virtual = virtual.detach()
        with torch.autocast(virtual.device.type, enabled=False):
            return self._mapped(at_least_single(virtual))

    def _align(self, natural: Tensor, virtual: Tensor, y: Tensor, y_v: Tensor) -> Tensor:
        """SC over both halves, each feature of either an anchor."""
        z = torch.cat([to_unit(natural), to_unit(virtual)])
        labels = torch.cat([y, y_v if self.options.class_match else y_v + self.classes])
        return supervised_contrastive(z, labels, self.options.temperature)

    def _mapped(self, virtual: Tensor) -> Tensor:
        """Virtual features [B_v, d] through the fixed map, if there is one."""
        if self.options.feature_map == "none":
            return virtual
        if self._fixed is None:
            self._fixed = feature_map(self.options.feature_map, virtual.shape[1], self.seed)
        self._fixed = self._fixed.to(virtual)
        return virtual @ self._fixed

    def _gaussians(self, features: Tensor, y_v: Tensor, generator: torch.Generator | None) -> Tensor:
        """Anchors for the labels ``y_v``, as wide as ``features``."""
        if generator is None:
            raise ConfigError("gaussian_anchors are drawn anew at each step", hint="give the loss a generator")
        means = anchor_means(self.virtual_classes, features.shape[1], self.seed).to(features.device)
        return draw_anchors(means, y_v, generator).to(features.dtype)

    def _check(self, logits: Tensor, features: Tensor, natural: int, virtual: int) -> None:
        """Refuse a batch whose halves or outputs are not what the options say."""
        rows = natural if self.options.gaussian_anchors else natural + virtual
        if len(logits) != rows or len(features) != rows:
            raise ConfigError(
                f"{len(logits)} logits and {len(features)} features for {natural} natural and {virtual} virtual labels",
                hint="put the natural half first and the virtual half behind it (no virtual half for gaussian_anchors)",
            )
        if logits.shape[1] != self.outputs:
            raise ConfigError(
                f"the model has {logits.shape[1]} outputs, the loss needs {self.outputs}",
                hint="widen the head by the number of virtual classes (label_style=extra only)",
            )


def distance(natural: Tensor, virtual: Tensor) -> Tensor:
    """Mean over i of the L2 distance of ``natural[i]`` to ``virtual[i]``, whatever their classes, for [B, d], [B_v, d].

    Features are not normalized; the longer half's surplus has no partner and is left out. In fp32 or fp64. Source:
    specification of VHL §3.2 (``vhl_domain_weight``).
    """
    pairs = min(len(natural), len(virtual))
    with torch.autocast(natural.device.type, enabled=False):
        apart = at_least_single(natural[:pairs]) - at_least_single(virtual[:pairs])
        mean: Tensor = torch.linalg.vector_norm(apart, dim=1).mean()
    return mean
