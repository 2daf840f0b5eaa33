"""Move the middle blocks of a user's model to the server and put remote placeholders in their place."""

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
from .saving import add_saving

InitMethod = Literal["pca", "random"]


@dataclass(frozen=True, slots=True)
class BlockRange:
    """A range of consecutive blocks of a model.

    Attributes
    ----------
    path : str
        Path of the ``ModuleList`` of blocks.
    first, last : int
        Indices of the first and the last block, both included.
    """

    path: str
    first: int
    last: int

    @classmethod
    def find(cls, model: nn.Module, cut: tuple[str, str]) -> BlockRange:
        """Return the blocks after the module ``cut[0]``, up to and including ``cut[1]``.

        Raises
        ------
        ConfigError
            A name is not a block of this model, the order is reversed, or the model cannot be split.
        """
        path, blocks = find_blocks(cast(Any, model))
        names = [f"{path}.{i}" for i in range(len(blocks))]
        before, last = (_block_index(name, names) for name in cut)
        if last <= before:
            raise ConfigError(f"'{cut[1]}' does not come after '{cut[0]}'", hint="name the earlier block first")
        return cls(path, before + 1, last)


def recipe_of(model: nn.Module, block_range: BlockRange) -> Recipe:
    """Describe the blocks so that the server can build them.

    Raises
    ------
    ConfigError
        The model has a type, dtype or setting that the server cannot build.
    """
    config: Any = model.config
    family = architecture_of(config).name
    for name in ("is_decoder", "add_cross_attention", "chunk_size_feed_forward"):
        if getattr(config, name, None):
            raise ConfigError(f"a '{family}' with {name} cannot be split", hint=f"use one without {name}")
    plain = config.to_dict()
    shape = {name: plain[name] for name in SHAPES[family].model_fields if plain.get(name) is not None}
    frozen = []
    blocks = cast(nn.ModuleList, model.get_submodule(block_range.path))
    for index in range(block_range.first, block_range.last + 1):
        for name, tensor in blocks[index].state_dict(keep_vars=True).items():
            if tensor.dtype != torch.float32:
                raise ConfigError(
                    f"{block_range.path}.{index}.{name} is {str(tensor.dtype).removeprefix('torch.')}",
                    hint="load the model with dtype=torch.float32",
                )
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                frozen.append(f"{index}.{name}")
    attention = "eager" if config._attn_implementation == "eager" else "sdpa"
    try:
        return Recipe(
            family=family,
            shape=SHAPES[family](**shape),
            first=block_range.first,
            last=block_range.last,
            attention=attention,
            frozen=tuple(frozen),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the server cannot build this model: {where}: {first['msg']}") from error


def make_settings(**values: Any) -> Settings:
    """Validate the run's configuration; a :class:`ConfigError` names the first invalid setting."""
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "together"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"invalid settings for the split: {where}: {message}") from error


def attach(
    model: nn.Module, block_range: BlockRange, settings: Settings, session: NodeSession, start: InitMethod = "pca"
) -> AttachedSegment:
    """Send the weights of a range of blocks to the server and replace the blocks by remote ones.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    block_range : BlockRange
        The blocks to move.
    settings : SplitSegment
        Configuration that the run was opened with.
    session : NodeSession
    start : {"pca", "random"}
        Initialization of the codec: principal directions of the first batch, or random directions. Ignored without a
        rank.
    """
    blocks = cast(nn.ModuleList, model.get_submodule(block_range.path))
    client = SegmentClient(session)
    indices = list(range(block_range.first, block_range.last + 1))
    moved = [p for index in indices for p in blocks[index].parameters()]
    device = next((p.device for p in moved), torch.device("cpu"))
    segment = RemoteSegment(settings, client, init_method=start, device=device)
    segment.train(model.training)
    trainable = settings.rank is not None or any(p.requires_grad for p in moved)
    segment.proxy_parameter.requires_grad_(trainable)
    # Send all blocks before replacing any: the model stays unchanged if the server is lost meanwhile.
    placeholders = [RemoteBlock(i, blocks[i], client, segment if i == block_range.first else None) for i in indices]
    for index, placeholder in zip(indices, placeholders, strict=True):
        blocks[index] = placeholder.train(model.training)
    config: Any = model.config
    if hasattr(config, "use_cache"):
        config.use_cache = False
    add_saving(model, segment)
    return AttachedSegment(segment, moved)


class AttachedSegment:
    """The remote half of a split model: takes optimizer steps there too, until :meth:`close` or the end of ``with``.

    Parameters
    ----------
    segment : RemoteSegment
    moved : list of nn.Parameter
        The parameters that moved to the server.
    """

    def __init__(self, segment: RemoteSegment, moved: list[nn.Parameter]) -> None:
        self._segment = weakref.ref(segment)
        self._client = segment.client
        self._moved = {id(p): weakref.ref(p) for p in moved}
        self._hook = register_optimizer_step_post_hook(self._on_optimizer_step)

    @property
    def session(self) -> NodeSession:
        """The node's session of the run."""
        return self._client.session

    @property
    def steps(self) -> int:
        """Number of optimizer steps requested from the server."""
        return self._client.step

    def close(self) -> None:
        """End the run; idempotent. The server discards its weights: call ``state_dict()`` before.

        Raises
        ------
        FarshoreError
            The connection to the server was lost.
        """
        self._hook.remove()
        self._client.close()

    def __enter__(self) -> AttachedSegment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Take the step on the server if the optimizer holds the proxy parameter; runs after every optimizer step."""
        segment = self._segment()
        if segment is None:
            return
        for group in optimizer.param_groups:
            if any(p is segment.proxy_parameter for p in group["params"]):
                segment.commit(float(group["lr"]))
                return
        if any(self._has_moved(p) for group in optimizer.param_groups for p in group["params"]):
            raise ConfigError(
                "the optimizer holds parameters of blocks that have moved to the server",
                hint="create it from model.parameters() after farshore.split",
            )

    def _has_moved(self, parameter: torch.Tensor) -> bool:
        reference = self._moved.get(id(parameter))
        return reference is not None and reference() is parameter


def _block_index(name: str, names: list[str]) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'?" if near else f"the blocks are {names[0]} to {names[-1]}"
    raise ConfigError(f"the model has no block '{name}'", hint=hint)
