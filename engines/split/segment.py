"""The segment itself: some of a transformer's blocks, between two halves of a linear code. Pure PyTorch."""

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
    """Codes in, codes out.

    Parameters
    ----------
    config : SplitSegment
        Checked against this machine's memory before anything is allocated; weights are then left
        uninitialized, :meth:`load_block` fills them.

    Raises
    ------
    ConfigError
        The segment does not fit into this machine's memory.
    """

    def __init__(self, config: SplitSegment) -> None:
        super().__init__()
        self.recipe = config.recipe
        with torch.device("meta"):
            self.model = _skeleton(config.recipe)
        _check_size(self.model)
        self.model.to_empty(device="cpu")
        self.codec = None if config.rank is None else LinearCodec(config.recipe.hidden, config.rank)
        self._freeze(config.recipe.frozen)

    @property
    def blocks(self) -> dict[int, nn.Module]:
        """The blocks by their numbers in the whole model."""
        found = next(m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        return dict(zip(self.recipe.blocks, found, strict=True))

    def forward(self, codes: Tensor, mask: Tensor) -> Tensor:
        """Codes [B, T, w] to codes [B, T, w]; ``mask`` [B, T] is 1 at tokens and 0 at padding."""
        hidden = codes if self.codec is None else self.codec.decode(codes)
        hidden = self.hidden(hidden, mask)
        return hidden if self.codec is None else cast(Tensor, self.codec.encode(hidden))

    def hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The blocks alone, [B, T, d] to [B, T, d]; the library builds its own masks from ``mask``."""
        return cast(Tensor, self.model(inputs_embeds=hidden, attention_mask=mask).last_hidden_state)

    def load_block(self, number: int, state: dict[str, Tensor]) -> None:
        """Fill a block's weights.

        Raises
        ------
        ConfigError
            There is no such block, or names or shapes are not the block's.
        """
        try:
            self.blocks[number].load_state_dict(state)
        except KeyError:
            raise ConfigError(f"the segment has no block {number}") from None
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(f"the weights of block {number} do not fit: {reason}") from error

    def _freeze(self, frozen: tuple[str, ...]) -> None:
        parameters = {f"{i}.{n}": p for i, block in self.blocks.items() for n, p in block.named_parameters()}
        for name in frozen:
            if name not in parameters:
                raise ConfigError(f"there is no parameter '{name}' to freeze in the segment")
            parameters[name].requires_grad_(False)


def _skeleton(recipe: Recipe) -> nn.Module:
    """The library's model with the segment's blocks only; what comes before and after them lets pass."""
    config_class, model_class = _CLASSES[recipe.family]
    config: Any = config_class(**recipe.shape.model_dump(exclude_none=True), vocab_size=2, pad_token_id=0)
    config.num_hidden_layers = recipe.last + 1
    config.use_cache = False
    config._attn_implementation = recipe.attention
    model: Any = model_class(config)
    family = ARCHITECTURES[recipe.family]
    for name in family.embeddings:
        stands_in: nn.Module = {"wpe": NoPositions, "drop": nn.Identity}.get(name, PassThrough)()
        setattr(model, name, stands_in)
    for name in family.tail:
        setattr(model, name, None if name == "pooler" else nn.Identity())
    # Those before are built too, at no cost: a block may depend on its number in the whole model.
    path, blocks = find_blocks(model)
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, blocks[recipe.first :])
    left = [name for name, _ in model.named_buffers()]
    if left:
        raise ConfigError(f"blocks of '{recipe.family}' hold buffers that no weights file carries: {left[0]}")
    return cast(nn.Module, model)


def _check_size(model: nn.Module) -> None:
    wanted = _BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
    free = psutil.virtual_memory().available
    if wanted > 0.8 * free:
        raise ConfigError(
            f"the segment needs {wanted / 2**30:.1f} GiB to be trained, and the server has {free / 2**30:.1f} GiB free",
            hint="cut out fewer blocks",
        )
