"""What a user's process asks the cloud to build and to train with. Imports nothing heavy: the server reads it first."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

EncodingName: TypeAlias = Literal["raw", "fp16", "int8", "int4"]
OptimizerName: TypeAlias = Literal["adamw", "adam", "sgd"]
#: Activation functions that transformers knows by these names; anything else could name code.
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
    """The keys of a BERT or RoBERTa config that shape its blocks; names as in transformers."""

    hidden_size: Width
    num_attention_heads: Heads
    intermediate_size: Width
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Small = 1e-12


class DistilBertShape(_Strict):
    """The keys of a DistilBERT config that shape its blocks."""

    dim: Width
    n_heads: Heads
    hidden_dim: Width
    activation: Activation = "gelu"
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1


class Gpt2Shape(_Strict):
    """The keys of a GPT-2 config that shape its blocks."""

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
#: The closed table of families: transformers' model type -> the keys that are taken over from its config.
SHAPES: dict[str, type[Shape]] = {
    "bert": BertShape,
    "roberta": BertShape,
    "distilbert": DistilBertShape,
    "gpt2": Gpt2Shape,
}


class Recipe(_Strict):
    """How to build the segment: data only, never code.

    ``first`` and ``last`` count the model's blocks from 0; both belong to the segment.
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
            raise ValueError("the last block comes before the first")
        if not isinstance(self.shape, SHAPES[self.family]):
            raise ValueError(f"the shape is not one of the family '{self.family}'")
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.hidden}")
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
        """The model's numbers of the segment's blocks."""
        return range(self.first, self.last + 1)


class OptimizerConfig(_Strict):
    """The optimizer of the half in the cloud; values that are left out are torch's own.

    The learning rate is not here: it comes with every step.
    """

    name: OptimizerName = "adamw"
    weight_decay: float | None = Field(None, ge=0.0)
    betas: tuple[Rate, Rate] | None = None
    eps: float | None = Field(None, ge=0.0)
    momentum: Rate | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        wrong = ("betas", "eps") if self.name == "sgd" else ("momentum",)
        for key in wrong:
            if getattr(self, key) is not None:
                raise ValueError(f"'{self.name}' has no '{key}'")
        return self

    def options(self) -> dict[str, object]:
        """Keyword arguments for torch."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class SplitSegment(_Strict):
    """Serve the middle blocks of a model to the process that owns the rest of it."""

    recipe: Recipe
    rank: int | None = Field(None, ge=1, le=65_536, description="numbers per token at both borders; none = all")
    encoding: EncodingName = Field("raw", description="how these numbers are written, both ways")
    ragged: bool = Field(True, description="padding does not travel")
    optimizer: OptimizerConfig = OptimizerConfig()
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the server computes")
    graphs: int = Field(64, ge=1, le=4096, description="most forwards that may wait for their backward")

    @model_validator(mode="after")
    def _narrow(self) -> Self:
        if self.rank is not None and self.rank > self.recipe.hidden:
            raise ValueError(f"a rank of {self.rank} is more than the {self.recipe.hidden} numbers of a token")
        return self

    @property
    def width(self) -> int:
        """Numbers per token that cross a border."""
        return self.rank or self.recipe.hidden
