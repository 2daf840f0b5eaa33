"""Settings of device and precision, the same in every method that computes; torch-free.

``farshore.models.devices`` turns them into torch's own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

#: ``auto``: the first of cuda, mps and cpu that a program's machine has.
DeviceName: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]

#: ``fp32``, or the type of autocast; parameters and optimizer state stay float32.
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


class ComputeSettings(BaseModel):
    """Device and precision of a method's programs; configurations of methods that compute extend it."""

    device: DeviceName = Field(
        "auto", description="where programs compute; auto: each on its machine's accelerator, if it has one"
    )
    precision: Precision = Field("fp32", description="bf16, fp16: compute under autocast; weights stay float32")
