"""What a split fine-tuning run can be told; the defaults are the measured recipe for 96 times less traffic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.errors import ConfigError

Bits = Literal["raw", "fp16", "bf16", "int8", "int4", "int2"]


class SplitFineTuning(BaseModel):
    """Configuration of the method.

    The recipe: rank 32 in 4 bits at the last block but one, projected residual, PCA initialization, five times the
    learning rate for the codec (specification of split fine-tuning §9; ``benchmarks/sft_accuracy.py`` measures it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # what is learned
    task: str = Field("docstrings", description="sst2, cola, rte … or docstrings, which needs no data set")
    model: str = Field("minilm", description="'minilm' or the name of a data set that holds a transformers model")
    train_samples: int = Field(0, ge=0, description="use so many training examples, drawn with the seed; 0 = all")
    eval_samples: int = Field(0, ge=0, description="evaluate on so many held-out examples; 0 = all")
    spare_samples: int = Field(
        0, ge=0, description="at the end, also score so many training examples that train_samples leaves out"
    )
    max_length: int = Field(0, ge=0, description="longest sequence in tokens; 0 = the task's default")

    # where and how the model is cut
    cut: Literal["boundary", "ffn", "ffn_svd", "codec"] = "ffn_svd"
    block: int = Field(-1, description="the block cut open, 1 … L; -1 is the last but one (L-1), -2 the one before")
    rank: int = Field(32, ge=1, description="numbers per token on the wire (ffn_svd, codec)")
    residual: Literal["drop", "project"] = "project"
    init: Literal["svd", "pca", "random"] = "pca"
    decoder: Literal["linear", "mlp"] = "linear"
    sentence_vector: int = Field(0, ge=0, description="numbers per sentence beside the codes; 0 = none")
    codec_encoding: Literal["raw", "fp16", "bf16"] = Field("bf16", description="of the code's first values, sent once")
    calibration_samples: int = Field(256, ge=1, description="local examples that the PCA initialization looks at")
    head: Literal["auto", "mean", "pooler", "last"] = Field("auto", description="how tokens become one vector")
    freeze: Literal["none", "embeddings", "front", "front+codec"] = "none"

    # the wire
    up: Bits = Field("int4", description="encoding of the activations")
    down: Bits = Field("int4", description="encoding of their gradients")
    sentence_up: Literal["raw", "fp16", "bf16"] = "fp16"
    sentence_down: Bits = "int8"
    ragged: bool = Field(True, description="leave padding tokens at home")
    micro_batches: int = Field(1, ge=1, description="parts a step is cut into, to overlap edge, link and cloud")
    credits: int = Field(4, ge=1, description="micro-batches in flight per edge")

    # training
    epochs: int = Field(0, ge=0, description="times through all examples; 0 = the task's default")
    steps: int = Field(0, ge=0, description="stop after so many steps; 0 = all epochs")
    batch_size: int = Field(32, ge=1, description="examples per step over all edges")
    learning_rate: float = Field(1e-4, gt=0)
    codec_lr_factor: float = Field(5.0, gt=0, description="learning rate of the codec, in multiples of the model's")
    weight_decay: float = Field(0.01, ge=0)
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps with rising learning rate")] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    average_every: int = Field(0, ge=0, description="average the edges' fronts every so many steps; 0 = never")
    average_encoding: Literal["raw", "fp16", "bf16"] = "bf16"
    eval_every: int = Field(0, ge=0, description="evaluate every so many steps; 0 = after each epoch")

    # the machine
    threads: int = Field(1, ge=0, description="compute threads of each program; 0 = all cores. Part of 'same bits'.")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _fits_together(self) -> SplitFineTuning:
        if self.cut in ("boundary", "ffn") and self.decoder == "mlp":
            raise ValueError("decoder=mlp needs a low-rank cut (ffn_svd or codec)")
        if self.cut in ("boundary", "ffn") and self.sentence_vector:
            raise ValueError("sentence_vector needs a low-rank cut (ffn_svd or codec)")
        if self.block == 0:
            raise ValueError("block counts from 1 (or from the end with -1, -2 …)")
        return self

    def block_of(self, blocks: int) -> int:
        """The 1-based block to cut in a model of ``blocks`` blocks; -1 is the last but one.

        Raises
        ------
        ConfigError
            There is no such block.
        """
        k = self.block if self.block > 0 else blocks + self.block
        if not 1 <= k <= blocks:
            raise ConfigError(
                f"block={self.block} is not one of the model's {blocks} blocks",
                hint=f"choose 1 to {blocks}, or -1 (the last but one) to {1 - blocks}",
            )
        return k
