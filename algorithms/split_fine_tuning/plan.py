"""What is cut where, as data: the choices, and the plan that both ends must agree on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from ...core.errors import ConfigError, RefusedError
from ...engines.split.architectures import ARCHITECTURES

How = Literal["boundary", "ffn", "ffn_svd", "codec"]
Residual = Literal["drop", "project"]
Init = Literal["svd", "pca", "random"]
DecoderKind = Literal["linear", "mlp"]


@dataclass(frozen=True, slots=True)
class CutOptions:
    """Where and how to cut (specification §3).

    Attributes
    ----------
    block : int
        The block k that is cut open, 1-based; for ``boundary`` and ``codec`` the last block of the front.
    how : {"boundary", "ffn", "ffn_svd", "codec"}
        Send the block's output; the output of its first matrix; a rank-r factorization of that matrix; or r
        linear combinations of the block's output (the right choice for pre-norm models).
    rank : int, optional
        Code width r; needed by ``ffn_svd`` and ``codec`` only.
    residual : {"drop", "project"}
        Drop the residual that would have to cross the cut, as the paper does, or rebuild it from the code. No
        bytes.
    init : {"svd", "pca", "random"}
        Where the factors come from. ``pca`` starts as ``svd`` until :func:`~.calibration.calibrate` has seen
        samples.
    seed : int
        Seed of everything random here.
    decoder : {"linear", "mlp"}
        What rebuilds the block's input from the code in the cloud. ``mlp`` adds a small network that starts
        at zero and keeps the first matrix whole; it costs parameters in the cloud and no bytes.
    sentence_vector : int
        Numbers sent per sentence beside the codes: a projection of the mean over its tokens. 0 sends none.
    """

    block: int
    how: How = "ffn_svd"
    rank: int | None = None
    residual: Residual = "project"
    init: Init = "pca"
    seed: int = 0
    decoder: DecoderKind = "linear"
    sentence_vector: int = 0

    @property
    def compressed(self) -> bool:
        """Whether the code is narrower than what it stands for."""
        return self.how in ("ffn_svd", "codec")


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The resolved cut of one model; JSON-able, and equal on both ends or the run is refused.

    Attributes
    ----------
    options : CutOptions
        The choices.
    family, layers, hidden, ffn : str, int, int, int
        Model type, number of blocks L, hidden width d and FFN width f of the whole model.
    classes, head : int, str
        Number of classes and pooling of the head.
    fingerprint : str
        Of the whole pre-trained model, see :class:`~.backbone.Origin`.
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
        """Numbers per token that cross the cut, each way."""
        if self.options.compressed:
            return int(self.options.rank or 0)
        return self.ffn if self.options.how == "ffn" else self.hidden

    @property
    def digest(self) -> str:
        """32 hex digits over the whole plan."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SplitPlan:
        """Read a plan that may come from a peer.

        Raises
        ------
        RefusedError
            The text is no plan, or has unknown, missing or wrongly typed fields.
        """
        try:
            raw = json.loads(text)
            options = CutOptions(**raw.pop("options"))
            plan = cls(options=options, **raw)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise RefusedError(f"the other end's split plan is not valid: {error}") from error
        return plan

    def require_equal(self, other: SplitPlan) -> None:
        """Refuse a peer whose plan differs.

        Raises
        ------
        RefusedError
            Names the first field that differs and both values.
        """
        mine, theirs = _flat(self), _flat(other)
        for name, value in mine.items():
            if theirs[name] != value:
                raise RefusedError(
                    f"the two ends split differently: {name} is {value!r} here and {theirs[name]!r} there",
                    hint="start both ends from the same model and settings",
                )


def _flat(plan: SplitPlan) -> dict[str, object]:
    raw = asdict(plan)
    options = raw.pop("options")
    return {**raw, **options}


def _check(plan: SplitPlan) -> None:
    o = plan.options
    for name, allowed in (("how", How), ("residual", Residual), ("init", Init), ("decoder", DecoderKind)):
        if getattr(o, name) not in get_args(allowed):
            raise ConfigError(f"{name}={getattr(o, name)!r} is unknown", hint=f"use one of {get_args(allowed)}")
    numbers = [(f.name, getattr(o, f.name)) for f in fields(o) if f.name in ("block", "seed", "sentence_vector")]
    numbers += [(n, getattr(plan, n)) for n in ("layers", "hidden", "ffn", "classes")]
    for name, value in numbers:
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name}={value!r} is not a whole number of zero or more")
    if plan.family not in ARCHITECTURES:
        raise ConfigError(f"models of type {plan.family!r} cannot be split", hint=f"use one of {sorted(ARCHITECTURES)}")
    if not 1 <= o.block <= plan.layers:
        raise ConfigError(f"block={o.block} is not in the model", hint=f"choose 1 to {plan.layers}")
    if o.compressed:
        if type(o.rank) is not int or not 1 <= o.rank <= plan.hidden:
            raise ConfigError(f"how={o.how} with rank={o.rank!r}", hint=f"choose a rank from 1 to {plan.hidden}")
        if o.sentence_vector > plan.hidden:
            raise ConfigError(f"sentence_vector={o.sentence_vector} is too wide", hint=f"at most {plan.hidden}")
        if o.how == "codec" and o.init == "svd":
            raise ConfigError("how=codec has no matrix to factorize", hint="use init=pca and calibrate, or init=random")
    elif o.decoder != "linear" or o.sentence_vector:
        raise ConfigError(f"how={o.how} sends everything and has no decoder", hint="use ffn_svd or codec")
    _check_pre_norm(plan)


def _check_pre_norm(plan: SplitPlan) -> None:
    """A pre-norm block's residual is the stream before the norm, which a code of the normed input does not
    determine."""
    o = plan.options
    if not ARCHITECTURES[plan.family].pre_norm or o.how not in ("ffn", "ffn_svd"):
        return
    if o.decoder == "mlp":
        raise ConfigError(f"decoder=mlp with how={o.how} needs a post-norm model", hint="use how=codec")
    if o.residual == "project" and (o.how == "ffn" or o.init != "pca"):
        raise ConfigError(
            f"residual=project of a pre-norm model ({plan.family}) has to be fitted to samples",
            hint="use how=codec, or how=ffn_svd with init=pca and calibrate it",
        )
