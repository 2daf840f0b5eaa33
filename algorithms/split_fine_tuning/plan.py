"""Description of a split, compared by both sides: the options of the cut and the properties of the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from ...core.errors import ConfigError, RefusedError
from ...engines.split.architectures import ARCHITECTURES

CutKind = Literal["boundary", "ffn", "ffn_svd", "codec"]
Residual = Literal["drop", "project"]
Init = Literal["svd", "pca", "random"]
DecoderKind = Literal["linear", "mlp"]


@dataclass(frozen=True, slots=True)
class CutOptions:
    """Options of a cut; ``docs/methods/split_fine_tuning.md``, sections 2 to 6.

    Attributes
    ----------
    block : int
        1-based index k of the block in which to cut; for ``boundary`` and ``codec``, the last block of the front.
    how : {"boundary", "ffn", "ffn_svd", "codec"}
        What crosses the cut: the block's output; the output of W1, its first feed-forward matrix; the rank-r code of
        a factorized W1; or r linear combinations of the block's output (use this for pre-norm models).
    rank : int, optional
        Width r of the code; required by ``ffn_svd`` and ``codec``.
    residual : {"drop", "project"}
        Drop the residual connection across the cut, as the paper does, or reconstruct it from the code. Neither
        sends any bytes.
    init : {"svd", "pca", "random"}
        Initialization of the factors. ``pca`` uses ``svd`` until :func:`~.calibration.calibrate` has run.
    seed : int
        Seed of random initial values.
    decoder : {"linear", "mlp"}
        Reconstruction in the cloud. ``mlp`` keeps W1 whole, reconstructs its input and adds a small network whose
        output is zero at first; it costs parameters in the cloud and no bytes.
    sentence_vector : int
        Numbers sent per sentence in addition to the codes: a projection of the mean over its tokens. 0 for none.
    """

    block: int
    how: CutKind = "ffn_svd"
    rank: int | None = None
    residual: Residual = "project"
    init: Init = "pca"
    seed: int = 0
    decoder: DecoderKind = "linear"
    sentence_vector: int = 0

    @property
    def compressed(self) -> bool:
        """Whether codes of width ``rank`` are sent."""
        return self.how in ("ffn_svd", "codec")


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The resolved cut of one model; serializable to JSON. A run is refused unless both sides have equal plans.

    Attributes
    ----------
    options : CutOptions
        Options of the cut.
    family, layers, hidden, ffn : str, int, int, int
        Model type, number of blocks L, hidden width d and FFN width f of the whole model.
    classes, head : int, str
        Number of classes, and pooling of the head.
    fingerprint : str
        Fingerprint of the whole pre-trained model; see :class:`~.backbone.Origin`.
    """

    options: CutOptions
    family: str
    layers: int
    hidden: int
    ffn: int
    classes: int
    head: str
    fingerprint: str

    def __post_init__(self) -> None:
        _check(self)

    @property
    def width(self) -> int:
        """Numbers per token that cross the cut, in each direction."""
        if self.options.compressed:
            return int(self.options.rank or 0)
        return self.ffn if self.options.how == "ffn" else self.hidden

    @property
    def digest(self) -> str:
        """Hash of the whole plan, 32 hex digits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return canonical JSON: equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SplitPlan:
        """Parse and check a plan received from a peer.

        Raises
        ------
        RefusedError
            The text is not a plan, or has unknown, missing or invalid fields.
        """
        try:
            raw = json.loads(text)
            options = CutOptions(**raw.pop("options"))
            plan = cls(options=options, **raw)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise RefusedError(f"invalid split plan from the peer: {error}") from error
        return plan

    def require_equal(self, other: SplitPlan) -> None:
        """Raise an error if a peer's plan differs.

        Raises
        ------
        RefusedError
            Names the first field that differs and both values.
        """
        mine, theirs = _flat(self), _flat(other)
        for name, value in mine.items():
            if theirs[name] != value:
                raise RefusedError(
                    f"the split plans differ: {name} is {value!r} on this side and {theirs[name]!r} on the other",
                    hint="start both sides with the same model and settings",
                )


def _flat(plan: SplitPlan) -> dict[str, object]:
    raw = asdict(plan)
    options = raw.pop("options")
    return {**raw, **options}


def _check(plan: SplitPlan) -> None:
    o = plan.options
    for name, allowed in (("how", CutKind), ("residual", Residual), ("init", Init), ("decoder", DecoderKind)):
        if getattr(o, name) not in get_args(allowed):
            raise ConfigError(f"unknown {name}={getattr(o, name)!r}", hint=f"use one of {get_args(allowed)}")
    numbers = [(f.name, getattr(o, f.name)) for f in fields(o) if f.name in ("block", "seed", "sentence_vector")]
    numbers += [(n, getattr(plan, n)) for n in ("layers", "hidden", "ffn", "classes")]
    for name, value in numbers:
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name}={value!r} is not a non-negative integer")
    if plan.family not in ARCHITECTURES:
        raise ConfigError(f"models of type {plan.family!r} cannot be split", hint=f"use one of {sorted(ARCHITECTURES)}")
    if not 1 <= o.block <= plan.layers:
        raise ConfigError(f"the model has no block={o.block}", hint=f"choose 1 to {plan.layers}")
    if o.compressed:
        if type(o.rank) is not int or not 1 <= o.rank <= plan.hidden:
            raise ConfigError(f"invalid rank={o.rank!r} for how={o.how}", hint=f"choose 1 to {plan.hidden}")
        if o.sentence_vector > plan.hidden:
            raise ConfigError(f"sentence_vector={o.sentence_vector} is too wide", hint=f"choose at most {plan.hidden}")
        if o.how == "codec" and o.init == "svd":
            raise ConfigError("init=svd needs a matrix to factorize; how=codec has none", hint="use init=pca or random")
    elif o.decoder != "linear" or o.sentence_vector:
        raise ConfigError(f"decoder and sentence_vector need a code; how={o.how} has none", hint="use ffn_svd or codec")
    _check_pre_norm(plan)


def _check_pre_norm(plan: SplitPlan) -> None:
    """Refuse options that a pre-norm block does not allow: a code of the normalized input does not determine the
    residual stream, which is the input of the norm."""
    o = plan.options
    if not ARCHITECTURES[plan.family].pre_norm or o.how not in ("ffn", "ffn_svd"):
        return
    if o.decoder == "mlp":
        raise ConfigError(f"decoder=mlp with how={o.how} needs a post-norm model", hint="use how=codec")
    if o.residual == "project" and (o.how == "ffn" or o.init != "pca"):
        raise ConfigError(
            f"residual=project of a pre-norm model ({plan.family}) must be fitted to samples",
            hint="use how=codec, or how=ffn_svd with init=pca",
        )
