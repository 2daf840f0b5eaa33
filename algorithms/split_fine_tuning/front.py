"""The half on the edge: embeddings, the first blocks, and the encoder of the code."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...engines.split.architectures import ARCHITECTURES
from .codec import Encoder
from .codec_start import CodecStart
from .plan import SplitPlan
from .statistics import CodeStatistics


class _ReachedError(Exception):
    """Carries the first matrix's input out of a block whose rest lives elsewhere."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Tap(nn.Module):
    """Stands where the first matrix was, and ends the block there.

    ``keep`` is the first matrix itself where the edge has to apply it (``how=ffn``).
    """

    def __init__(self, keep: nn.Module | None) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, a: Tensor) -> Tensor:
        """Never returns: the enclosing :class:`OpenedBlock` catches ``a`` [B, T, d] or W1·a + b1 [B, T,
        f]."""
        raise _ReachedError(a if self.keep is None else self.keep(a))


class OpenedBlock(nn.Module):
    """A block that returns what reaches its :class:`Tap`: the library's own code runs up to there, masks and
    all."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the block's own forward, up to the tap."""
        try:
            self.block(hidden, *args, **kwargs)
        except _ReachedError as reached:
            return reached.value
        raise RuntimeError("the block ended without applying its first matrix")


class Front(nn.Module):
    """Token ids in, codes out. Holds no parameter of the trunk.

    Attributes
    ----------
    plan : SplitPlan
    model : PreTrainedModel
        Embeddings and blocks 1..k, the last one opened unless it is cut at its end.
    codec : Encoder or None
        None where everything is sent.
    statistics : CodeStatistics
        Running mean and deviation of each code channel, for quantizers.
    """

    def __init__(self, plan: SplitPlan, model: PreTrainedModel, codec: Encoder | None) -> None:
        super().__init__()
        self.plan = plan
        self.model = model
        self.codec = codec
        self.statistics = CodeStatistics(plan.width)
        self._token_types = ARCHITECTURES[plan.family].token_types

    def features(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """What the codec encodes: the block's output, or its first matrix's input (or, for ``ffn``, output),
        [B, T, ·]."""
        kinds = {"token_type_ids": token_type_ids} if self._token_types else {}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds)
        return cast(Tensor, out.last_hidden_state)

    def codes(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Codes [B, T, w] and, if the plan has sentence vectors, those [B, q]."""
        a = self.features(input_ids, attention_mask, token_type_ids)
        return (a, None) if self.codec is None else self.codec(a, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Codes z [B, T, w] alone, from token ids, mask and token types, each [B, T] int64."""
        return self.codes(input_ids, attention_mask, token_type_ids)[0]

    def take(self, start: CodecStart) -> None:
        """Take V (and Q) and the statistics of the codes from what an edge of this trunk has settled."""
        if self.codec is not None and start.basis is not None:
            self.codec.start(start.basis, start.sentence)
        self.statistics.set(start.code_mean, start.code_variance)
