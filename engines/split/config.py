"""Configuration of a remote segment: architecture, codec, optimizer. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.devices import ComputeSettings

EncodingName: TypeAlias = Literal["raw", "fp16", "int8", "int4"]
OptimizerName: TypeAlias = Literal["adamw", "adam", "sgd"]
#: The activation functions accepted, by their names in transformers. Closed: another name could select arbitrary code.
Activation: TypeAlias = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh"
]
Width: TypeAlias = Annotated[int, Field(ge=1, le=65_536)]
Heads: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
Rate: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Small: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BertShape(_Strict):
    """Entries of a BERT or RoBERTa config that determine its blocks; names as in transformers."""

    hidden_size: Width
    num_attention_heads: Heads
    intermediate_size: Width
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Small = 1e-12


class DistilBertShape(_Strict):
    """Entries of a DistilBERT config that determine its blocks."""

    dim: Width
    n_heads: Heads
    hidden_dim: Width
    activation: Activation = "gelu"
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1


class Gpt2Shape(_Strict):
    """Entries of a GPT-2 config that determine its blocks."""

    n_embd: Width
    n_head: Heads
    n_inner: Width | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    layer_norm_epsilon: Small = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False


Shape: TypeAlias = BertShape | DistilBertShape | Gpt2Shape
#: Supported model types of transformers, and the config entries copied for each.
SHAPES: dict[str, type[Shape]] = {
    "bert": BertShape,
    "roberta": BertShape,
    "distilbert": DistilBertShape,
    "gpt2": Gpt2Shape,
}


class Recipe(_Strict):
    """How to build the segment, as data.

    ``first`` and ``last`` are 0-based indices of the model's blocks; both belong to the segment.
    """

    family: Literal["bert", "roberta", "distilbert", "gpt2"]
    shape: Shape
    first: int = Field(ge=1, le=255)
    last: int = Field(ge=1, le=255)
    attention: Literal["sdpa", "eager"] = "sdpa"
    frozen: tuple[Annotated[str, Field(max_length=200)], ...] = Field(
        (), max_length=4096, description="parameters that are not trained, as BLOCK.NAME"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"the last block ({self.last}) comes before the first ({self.first})")
        if not isinstance(self.shape, SHAPES[self.family]):
            raise ValueError(f"the shape is not that of a '{self.family}' model")
        if self.hidden % self.heads:
            raise ValueError(f"the width {self.hidden} is not divisible by {self.heads} heads")
        return self

    @property
    def hidden(self) -> int:
        """Width d of the hidden states."""
        match self.shape:
            case BertShape():
                return self.shape.hidden_size
            case DistilBertShape():
                return self.shape.dim
            case Gpt2Shape():
                return self.shape.n_embd

    @property
    def heads(self) -> int:
        """Attention heads per block."""
        match self.shape:
            case BertShape():
                return self.shape.num_attention_heads
            case DistilBertShape():
                return self.shape.n_heads
            case Gpt2Shape():
                return self.shape.n_head

    @property
    def blocks(self) -> range:
        """Indices, in the whole model, of the segment's blocks."""
        return range(self.first, self.last + 1)


class OptimizerConfig(_Strict):
    """Optimizer of the remote half; options left out keep torch's defaults.

    The learning rate is not a setting: every step message carries it.
    """

    name: OptimizerName = "adamw"
    weight_decay: float | None = Field(None, ge=0.0)
    betas: tuple[Rate, Rate] | None = None
    eps: float | None = Field(None, ge=0.0)
    momentum: Rate | None = None

    @model_validator(mode="after")
    def _options_exist(self) -> Self:
        wrong = ("betas", "eps") if self.name == "sgd" else ("momentum",)
        for key in wrong:
            if getattr(self, key) is not None:
                raise ValueError(f"optimizer '{self.name}' has no option '{key}'")
        return self

    def options(self) -> dict[str, object]:
        """Return the keyword arguments for torch's optimizer."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class SplitSegment(ComputeSettings):
    """Configuration of a run that serves the middle blocks of a model to the process that owns the rest.

    ``device`` and ``precision`` are those of the server's half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: Recipe
    rank: int | None = Field(None, ge=1, le=65_536, description="numbers per token at both boundaries; none = all d")
    encoding: EncodingName = Field("raw", description="encoding of these numbers, in both directions")
    ragged: bool = Field(True, description="do not send padding tokens")
    optimizer: OptimizerConfig = OptimizerConfig()
    graphs: int = Field(64, ge=1, le=4096, description="forward passes that may be awaiting their backward pass")

    @model_validator(mode="after")
    def _narrow(self) -> Self:
        if self.rank is not None and self.rank > self.recipe.hidden:
            raise ValueError(f"rank {self.rank} exceeds the hidden width {self.recipe.hidden}")
        if self.precision == "fp16" and self.encoding != "raw":
            # A gradient scaler finds its scale by gradients that overflow; only raw floats can carry them.
            raise ValueError(
                f"encoding={self.encoding} cannot encode the gradients that overflow with precision=fp16; use "
                "encoding=raw or precision=bf16"
            )
        return self

    @property
    def width(self) -> int:
        """Numbers per token that cross a boundary, in each direction."""
        return self.rank or self.recipe.hidden
