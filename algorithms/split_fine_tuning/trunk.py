"""The cloud's half of the model: decoder, remainder of the opened block, later blocks and head."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ConfigError
from .codec import Decoder, FullProjection
from .codec_init import CodecInit
from .heads import Head
from .plan import SplitPlan


class Trunk(nn.Module):
    """Maps codes to logits; transformers rebuilds its masks from the attention mask, no token ids are needed.

    Attributes
    ----------
    plan : SplitPlan
    codec : Decoder, FullProjection or None
        Reconstructs the front's output from the code; None for cuts without a reconstruction.
    first : nn.Module or None
        W1, if the decoder reconstructs its input (``decoder=mlp``).
    rest : nn.Module or None
        The part of the opened block after W1.
    model : PreTrainedModel
        Blocks k+1..L, final norm and pooler; its embeddings are pass-throughs.
    head : Head
    factorized : tuple[Tensor, Tensor] or None
        W1 [f, d] and b1 [f], if factors replace them, until :meth:`initialize_codec`.
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
        """Return logits [B, C] of codes ``z`` [B, T, w], the mask [B, T], and sentence vectors [B, q] or None."""
        self._check(z, sentence)
        hidden = self._hidden(z, sentence)
        out = self.model(inputs_embeds=hidden, attention_mask=attention_mask)
        pooled = getattr(out, "pooler_output", None)
        return cast(Tensor, self.head(out.last_hidden_state, pooled, attention_mask))

    def _hidden(self, z: Tensor, sentence: Tensor | None) -> Tensor:
        """Return the output of block k, [B, T, d]."""
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
            raise ConfigError(f"codes have shape {tuple(z.shape)}, expected [batch, tokens, {self.plan.width}]")
        q = self.plan.options.sentence_vector
        shape = None if sentence is None else tuple(sentence.shape)
        if shape != ((len(z), q) if q else None):
            raise ConfigError(f"sentence vectors have shape {shape}, expected {(len(z), q) if q else None}")

    def initialize_codec(self, init: CodecInit) -> None:
        """Initialize the decoder from the initial values of a calibration, and release W1."""
        if isinstance(self.codec, Decoder):
            if init.basis is not None:
                self.codec.initialize(init.basis, self.factorized, init.stream)
            if self.codec.network is not None:
                self.codec.network.standardize(init.code_mean, init.code_variance)
        self.factorized = None
