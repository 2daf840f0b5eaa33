"""Take the middle blocks out of a user's model and put their stand-ins there."""

from __future__ import annotations

import difflib
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ...core.errors import ConfigError
from ...core.session import NodeSession
from .architectures import architecture_of, find_blocks
from .config import SHAPES, Recipe
from .config import SplitSegment as Settings
from .remote import RemoteBlock, RemoteSegment
from .rpc import SegmentClient

CodecStart = Literal["pca", "random"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model the segment is.

    Attributes
    ----------
    path : str
        Name of the list of blocks.
    first, last : int
        Numbers of its first and last block.
    """

    path: str
    first: int
    last: int

    @classmethod
    def find(cls, model: nn.Module, cut: tuple[str, str]) -> Place:
        """The blocks after the module ``cut[0]``, up to and including ``cut[1]``.

        Raises
        ------
        ConfigError
            They are no blocks of this model, stand in another order, or the model cannot be split.
        """
        path, blocks = find_blocks(cast(Any, model))
        names = [f"{path}.{i}" for i in range(len(blocks))]
        before, last = (_number(name, names) for name in cut)
        if last <= before:
            raise ConfigError(f"'{cut[1]}' does not come after '{cut[0]}'", hint="name the earlier block first")
        return cls(path, before + 1, last)


def recipe_of(model: nn.Module, place: Place) -> Recipe:
    """How the cloud can build the segment.

    Raises
    ------
    ConfigError
        The model is of a kind, or has a setting, that the cloud cannot build.
    """
    config: Any = model.config
    family = architecture_of(config).name
    for name in ("is_decoder", "add_cross_attention", "chunk_size_feed_forward"):
        if getattr(config, name, None):
            raise ConfigError(f"a '{family}' with {name} cannot be split", hint=f"use one without {name}")
    plain = config.to_dict()
    shape = {name: plain[name] for name in SHAPES[family].model_fields if plain.get(name) is not None}
    frozen = []
    blocks = cast(nn.ModuleList, model.get_submodule(place.path))
    for number in range(place.first, place.last + 1):
        for name, tensor in blocks[number].state_dict(keep_vars=True).items():
            if tensor.dtype != torch.float32:
                raise ConfigError(
                    f"{place.path}.{number}.{name} is {str(tensor.dtype).removeprefix('torch.')}",
                    hint="load the model with dtype=torch.float32",
                )
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                frozen.append(f"{number}.{name}")
    attention = "eager" if config._attn_implementation == "eager" else "sdpa"
    try:
        return Recipe(
            family=family,
            shape=SHAPES[family](**shape),
            first=place.first,
            last=place.last,
            attention=attention,
            frozen=tuple(frozen),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the cloud cannot build this model: {where}: {first['msg']}") from error


def settings(**values: Any) -> Settings:
    """The run's configuration; a wrong value is a :class:`ConfigError` that names it."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "together"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the settings of the split are wrong: {where}: {message}") from error


def attach(
    model: nn.Module, place: Place, settings: Settings, session: NodeSession, start: CodecStart = "pca"
) -> AttachedSegment:
    """Send the segment's weights to the cloud and let the model's own code go through it from now on.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    place : Place
    settings : SplitSegment
        What the run was opened with.
    session : NodeSession
    start : {"pca", "random"}
        Whether the first batch turns the codes into its principal directions; without a rank it has no meaning.
    """
    blocks = cast(nn.ModuleList, model.get_submodule(place.path))
    conversation = SegmentClient(session)
    segment = RemoteSegment(settings, conversation, codec_start=start)
    segment.train(model.training)
    gone = list(range(place.first, place.last + 1))
    everything = [p for number in gone for p in blocks[number].parameters()]
    trained = settings.rank is not None or any(p.requires_grad for p in everything)
    segment.anchor.requires_grad_(trained)
    device = next((p.device for p in everything), torch.device("cpu"))
    # All are sent before any is replaced: if the server goes away meanwhile, the model is as it was.
    stand_ins = [RemoteBlock(n, blocks[n], conversation, segment if n == place.first else None) for n in gone]
    for number, stand_in in zip(gone, stand_ins, strict=True):
        blocks[number] = stand_in.to(device).train(model.training)
    config: Any = model.config
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return AttachedSegment(segment, everything)


class AttachedSegment:
    """The split model's connection: commits its steps; ends with :meth:`close` or a ``with`` block.

    Parameters
    ----------
    segment : RemoteSegment
    gone : list of nn.Parameter
        The parameters that moved to the cloud.
    """

    def __init__(self, segment: RemoteSegment, gone: list[nn.Parameter]) -> None:
        self._segment = weakref.ref(segment)
        self._conversation = segment.conversation
        self._gone = {id(p): weakref.ref(p) for p in gone}
        self._hook = register_optimizer_step_post_hook(self._stepped)

    @property
    def session(self) -> NodeSession:
        """The run's session on this side."""
        return self._conversation.session

    @property
    def steps(self) -> int:
        """Steps that the cloud was told to take."""
        return self._conversation.step

    def close(self) -> None:
        """Let the cloud end the run; idempotent. The weights over there are gone afterwards: take ``state_dict()``
        before.

        Raises
        ------
        FarshoreError
            The server is gone already.
        """
        self._hook.remove()
        self._conversation.close()

    def __enter__(self) -> AttachedSegment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called after every step of every optimizer in this process."""
        segment = self._segment()
        if segment is None:
            return
        for group in optimizer.param_groups:
            if any(p is segment.anchor for p in group["params"]):
                segment.commit(float(group["lr"]))
                return
        if any(self._is_gone(p) for group in optimizer.param_groups for p in group["params"]):
            raise ConfigError(
                "the optimizer holds blocks that have moved to the cloud",
                hint="make it from model.parameters() after farshore.split",
            )

    def _is_gone(self, parameter: torch.Tensor) -> bool:
        reference = self._gone.get(id(parameter))
        return reference is not None and reference() is parameter


def _number(name: str, names: list[str]) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'?" if near else f"its blocks are {names[0]} to {names[-1]}"
    raise ConfigError(f"the model has no block '{name}'", hint=hint)
