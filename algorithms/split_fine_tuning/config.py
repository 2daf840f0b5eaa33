"""Settings of a split fine-tuning run; the defaults send 96 times fewer bytes than vanilla split learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from ...core.devices import ComputeSettings
from ...core.errors import ConfigError

Bits = Literal["raw", "fp16", "bf16", "int8", "int4", "int2"]


class SplitFineTuning(ComputeSettings):
    """Settings of split fine-tuning; ``docs/methods/split_fine_tuning.md`` explains each.

    The defaults: the cut is in the second-to-last block, rank 32, 4 bits per number, projected residual, PCA
    initialization, and a learning rate five times as high for the codec. ``benchmarks/sft_accuracy.py`` measures them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # task and model
    task: str = Field("docstrings", description="sst2, cola, rte, … or docstrings, which needs no data set")
    model: str = Field("minilm", description="'minilm', or the name of a data set with a transformers model")
    train_samples: int = Field(0, ge=0, description="number of training examples, drawn with the seed; 0 = all")
    eval_samples: int = Field(0, ge=0, description="number of held-out examples to evaluate on; 0 = all")
    spare_samples: int = Field(
        0, ge=0, description="number of training examples left out by train_samples to score at the end"
    )
    max_length: int = Field(0, ge=0, description="maximum sequence length in tokens; 0 = the task's default")

    # cut and codec
    cut: Literal["boundary", "ffn", "ffn_svd", "codec"] = "ffn_svd"
    block: int = Field(-1, description="block in which the model is cut, 1 to L; -1 is L-1, -2 is L-2, …")
    rank: int = Field(32, ge=1, description="numbers per token on the wire, for ffn_svd and codec")
    residual: Literal["drop", "project"] = "project"
    init: Literal["svd", "pca", "random"] = "pca"
    decoder: Literal["linear", "mlp"] = "linear"
    sentence_vector: int = Field(0, ge=0, description="numbers per sentence sent in addition to the codes; 0 = none")
    codec_encoding: Literal["raw", "fp16", "bf16"] = Field(
        "bf16", description="encoding of the codec's initial values, which are sent once"
    )
    calibration_samples: int = Field(256, ge=1, description="local examples used for the PCA initialization")
    head: Literal["auto", "mean", "pooler", "last"] = Field("auto", description="pooling of the tokens of a sentence")
    freeze: Literal["none", "embeddings", "front", "front+codec"] = "none"

    # wire
    up: Bits = Field("int4", description="encoding of the codes")
    down: Bits = Field("int4", description="encoding of the gradients of the codes")
    sentence_up: Literal["raw", "fp16", "bf16"] = "fp16"
    sentence_down: Bits = "int8"
    ragged: bool = Field(True, description="do not send padding tokens")
    micro_batches: int = Field(1, ge=1, description="micro-batches per step; several overlap edge, link and cloud")
    credits: int = Field(4, ge=1, description="micro-batches in flight per edge")

    # training
    epochs: int = Field(0, ge=0, description="number of epochs; 0 = the task's default")
    steps: int = Field(0, ge=0, description="maximum number of steps; 0 = all epochs")
    batch_size: int = Field(32, ge=1, description="examples per step, summed over all edges")
    learning_rate: float = Field(1e-4, gt=0)
    codec_lr_factor: float = Field(5.0, gt=0, description="learning rate of the codec, relative to learning_rate")
    weight_decay: float = Field(0.01, ge=0)
    warmup: Annotated[float, Field(ge=0, lt=1, description="fraction of the steps with linear warm-up")] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    average_every: int = Field(0, ge=0, description="steps between averages of the edges' fronts; 0 = never")
    average_encoding: Literal["raw", "fp16", "bf16"] = "bf16"
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 = once per epoch")

    # machine
    threads: int = Field(1, ge=0, description="compute threads of each program; 0 = all cores. Changes rounding.")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _fits_together(self) -> SplitFineTuning:
        if self.cut in ("boundary", "ffn") and self.decoder == "mlp":
            raise ValueError("decoder=mlp needs a low-rank cut (ffn_svd or codec)")
        if self.cut in ("boundary", "ffn") and self.sentence_vector:
            raise ValueError("sentence_vector needs a low-rank cut (ffn_svd or codec)")
        if self.block == 0:
            raise ValueError("block counts from 1, or from the end with -1 (second to last), -2, …")
        if self.precision == "fp16":
            raise ValueError(
                "precision=fp16 needs scaled losses, and edges and cloud cannot skip a step together if one of them "
                "overflows; use precision=bf16"
            )
        return self

    def block_of(self, blocks: int) -> int:
        """Return the 1-based index of the block to cut in a model of ``blocks`` blocks.

        Raises
        ------
        ConfigError
            The model has no such block.
        """
        k = self.block if self.block > 0 else blocks + self.block
        if not 1 <= k <= blocks:
            raise ConfigError(
                f"block={self.block} is not one of the model's {blocks} blocks",
                hint=f"choose 1 to {blocks}, or -1 (second to last) to {1 - blocks}",
            )
        return k
