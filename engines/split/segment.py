"""The server's half of a split model: transformer blocks between a decoder and an encoder. Pure PyTorch."""

from __future__ import annotations

from typing import Any, cast

import psutil
import torch
import transformers
from torch import Tensor, nn

from ...core.errors import ConfigError
from .architectures import ARCHITECTURES, NoPositions, PassThrough, find_blocks
from .codec import LinearCodec
from .config import Recipe, SplitSegment

_CLASSES = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel),
    "gpt2": (transformers.GPT2Config, transformers.GPT2Model),
}
#: Bytes per parameter while training: weight, gradient and Adam's two moments, float32 each.
_BYTES_PER_PARAMETER = 16


class Segment(nn.Module):
    """Blocks ``first`` to ``last`` of a model, from codes to codes.

    Parameters
    ----------
    config : SplitSegment
        Its size is checked against this machine's memory before anything is allocated. Weights stay uninitialized
        until they are loaded into :attr:`blocks`.

    Raises
    ------
    ConfigError
        The segment does not fit into this machine's memory.
    """

    def __init__(self, config: SplitSegment) -> None:
        super().__init__()
        self.recipe = config.recipe
        with torch.device("meta"):
            self.model = _empty_model(config.recipe)
        _check_memory(self.model)
        self.model.to_empty(device="cpu")
        self.codec = None if config.rank is None else LinearCodec(config.recipe.hidden, config.rank)
        self._freeze(config.recipe.frozen)

    @property
    def blocks(self) -> dict[int, nn.Module]:
        """The blocks by their indices in the whole model."""
        found = next(m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        return dict(zip(self.recipe.blocks, found, strict=True))

    def forward(self, codes: Tensor, mask: Tensor) -> Tensor:
        """Map codes [B, T, w] to codes [B, T, w]; ``mask`` [B, T] is 1 at tokens and 0 at padding."""
        hidden = codes if self.codec is None else self.codec.decode(codes)
        hidden = self.hidden(hidden, mask)
        return hidden if self.codec is None else cast(Tensor, self.codec.encode(hidden))

    def hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run the blocks alone, [B, T, d] to [B, T, d]; transformers builds the attention masks from ``mask``."""
        return cast(Tensor, self.model(inputs_embeds=hidden, attention_mask=mask).last_hidden_state)

    def _freeze(self, frozen: tuple[str, ...]) -> None:
        parameters = {f"{i}.{n}": p for i, block in self.blocks.items() for n, p in block.named_parameters()}
        for name in frozen:
            if name not in parameters:
                raise ConfigError(f"cannot freeze '{name}': the segment has no such parameter")
            parameters[name].requires_grad_(False)


def _empty_model(recipe: Recipe) -> nn.Module:
    """Build the model with the segment's blocks only; embeddings and final layers become pass-throughs."""
    config_class, model_class = _CLASSES[recipe.family]
    config: Any = config_class(**recipe.shape.model_dump(exclude_none=True), vocab_size=2, pad_token_id=0)
    config.num_hidden_layers = recipe.last + 1
    config.use_cache = False
    config._attn_implementation = recipe.attention
    model: Any = model_class(config)
    architecture = ARCHITECTURES[recipe.family]
    for name in architecture.embeddings:
        replacement: nn.Module = {"wpe": NoPositions, "drop": nn.Identity}.get(name, PassThrough)()
        setattr(model, name, replacement)
    for name in architecture.tail:
        setattr(model, name, None if name == "pooler" else nn.Identity())
    # Earlier blocks are built too (free on the meta device): a block may depend on its index in the whole model.
    path, blocks = find_blocks(model)
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, blocks[recipe.first :])
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise ConfigError(f"blocks of '{recipe.family}' have a buffer that is not in their state_dict: {buffers[0]}")
    return cast(nn.Module, model)


def _check_memory(model: nn.Module) -> None:
    needed = _BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ConfigError(
            f"training the segment needs {needed / 2**30:.1f} GiB, and the server has {free / 2**30:.1f} GiB free",
            hint="move fewer blocks",
        )
