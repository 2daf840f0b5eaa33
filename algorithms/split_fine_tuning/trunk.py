"""The half in the cloud: the decoder of the code, the rest of the opened block, the later blocks and the
head."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ConfigError
from .codec import Decoder, FullProjection
from .codec_start import CodecStart
from .heads import Head
from .plan import SplitPlan


class Trunk(nn.Module):
    """Codes in, logits out. Sees no token id; masks are rebuilt by the library from the attention mask alone.

    Attributes
    ----------
    plan : SplitPlan
    codec : Decoder, FullProjection or None
        Rebuilds from the code what the front would have passed on.
    first : nn.Module or None
        The first matrix, kept whole where the decoder rebuilds its input (``decoder=mlp``).
    rest : nn.Module or None
        What follows the first matrix in the opened block.
    model : PreTrainedModel
        Blocks k+1..L, final norm and pooler; its embeddings pass hidden states through.
    head : Head
    factorized : tuple[Tensor, Tensor] or None
        W1 [f, d] and b1 [f] where the decoder replaces them, until :meth:`take`.
    """

    def __init__(
        self,
        plan: SplitPlan,
        codec: Decoder | FullProjection | None,
        first: nn.Module | None,
        rest: nn.Module | None,
        model: PreTrainedModel,
        head: Head,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.codec = codec
        self.first = first
        self.rest = rest
        self.model = model
        self.head = head
        self.factorized: tuple[Tensor, Tensor] | None = None

    def forward(self, z: Tensor, attention_mask: Tensor, sentence: Tensor | None = None) -> Tensor:
        """Logits [B, C] from codes ``z`` [B, T, w], the mask [B, T], and sentence vectors [B, q] if the plan
        has them."""
        self._check(z, sentence)
        hidden = self._hidden(z, sentence)
        out = self.model(inputs_embeds=hidden, attention_mask=attention_mask)
        pooled = getattr(out, "pooler_output", None)
        return cast(Tensor, self.head(out.last_hidden_state, pooled, attention_mask))

    def _hidden(self, z: Tensor, sentence: Tensor | None) -> Tensor:
        """The output of block k, [B, T, d]."""
        u, rebuilt = (z, None) if self.codec is None else self.codec(z, sentence)
        if self.rest is None:
            return u if rebuilt is None else rebuilt
        if self.first is not None:
            u = self.first(rebuilt)
        keep = self.plan.options.residual == "project"
        residual = rebuilt if keep and rebuilt is not None else z.new_zeros(())
        return cast(Tensor, self.rest(u, residual))

    def _check(self, z: Tensor, sentence: Tensor | None) -> None:
        if z.dim() != 3 or z.shape[-1] != self.plan.width:
            raise ConfigError(f"codes of shape {tuple(z.shape)} where [batch, tokens, {self.plan.width}] was agreed")
        q = self.plan.options.sentence_vector
        shape = None if sentence is None else tuple(sentence.shape)
        if shape != ((len(z), q) if q else None):
            raise ConfigError(f"sentence vectors of shape {shape} where {(len(z), q) if q else None} was agreed")

    def take(self, start: CodecStart) -> None:
        """Compute the decoder's first values from what an edge has settled; W1 is let go."""
        if isinstance(self.codec, Decoder):
            if start.basis is not None:
                self.codec.start(start.basis, self.factorized, start.stream)
            if self.codec.network is not None:
                self.codec.network.standardize(start.code_mean, start.code_variance)
        self.factorized = None
