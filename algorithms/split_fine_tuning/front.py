"""The edge's half of the model: embeddings, the first blocks and the encoder."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...engines.split.architectures import ARCHITECTURES
from .codec import Encoder
from .codec_init import CodecInit
from .plan import SplitPlan
from .statistics import CodeStatistics


class _ReachedError(Exception):
    """Leaves a block's ``forward`` early; carries the value that reached the tap."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Tap(nn.Module):
    """Replacement of W1 in a block that ends the block's forward pass there.

    ``keep`` is W1 itself if the edge applies it (``how=ffn``).
    """

    def __init__(self, keep: nn.Module | None) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, a: Tensor) -> Tensor:
        """Raise to the enclosing :class:`OpenedBlock`, with ``a`` [B, T, d] or W1·a + b1 [B, T, f]; never returns."""
        raise _ReachedError(a if self.keep is None else self.keep(a))


class OpenedBlock(nn.Module):
    """A block that returns the value at its :class:`Tap`; the library's own ``forward`` runs up to there."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block's own forward up to the tap."""
        try:
            self.block(hidden, *args, **kwargs)
        except _ReachedError as reached:
            return reached.value
        raise RuntimeError("the block's forward never reached its first feed-forward layer")


class Front(nn.Module):
    """Maps token ids to codes; has no parameter of the trunk.

    Attributes
    ----------
    plan : SplitPlan
    model : PreTrainedModel
        Embeddings and blocks 1..k; block k ends at its tap unless the cut is at its end.
    codec : Encoder or None
        None for uncompressed cuts.
    statistics : CodeStatistics
        Running mean and standard deviation of each code channel, for quantization.
    """

    def __init__(self, plan: SplitPlan, model: PreTrainedModel, codec: Encoder | None) -> None:
        super().__init__()
        self.plan = plan
        self.model = model
        self.codec = codec
        self.statistics = CodeStatistics(plan.width)
        self._token_types = ARCHITECTURES[plan.family].token_types

    def features(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the encoder's input [B, T, ·]: the block's output, the input of W1, or (``ffn``) the output of W1."""
        types = {"token_type_ids": token_type_ids} if self._token_types else {}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return cast(Tensor, out.last_hidden_state)

    def codes(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return codes [B, T, w] and sentence vectors [B, q], or None if the plan has none."""
        a = self.features(input_ids, attention_mask, token_type_ids)
        return (a, None) if self.codec is None else self.codec(a, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return only the codes [B, T, w]; token ids, mask and token types are [B, T] int64."""
        return self.codes(input_ids, attention_mask, token_type_ids)[0]

    def initialize_codec(self, init: CodecInit) -> None:
        """Set V, Q and the code statistics to the initial values of a calibration."""
        if self.codec is not None and init.basis is not None:
            self.codec.initialize(init.basis, init.sentence)
        self.statistics.set(init.code_mean, init.code_variance)
