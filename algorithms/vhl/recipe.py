"""A virtual data set in a few numbers: what a node needs to make it, or to say which one it has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Generator = Literal["upsampled_noise", "conv_decoder", "stylegan2"]

#: Recipes come from peers, and are bounded before memory is taken: 4 GiB of images.
LARGEST = 1 << 32


class VirtualRecipe(BaseModel):
    """How a virtual data set is made; equal recipes are the same set.

    Fields left out take the defaults of the generator and of the number of classes when the recipe is made, so a recipe
    always carries every number. Source: specification of VHL §3.1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Generator = "upsampled_noise"
    classes: int = Field(10, ge=1, le=65_536, description="virtual classes, C_v")
    per_class: int = Field(0, ge=1, description="images per class, m")
    channels: int = Field(3, ge=1, le=64)
    size: int = Field(32, ge=4, le=1024, description="height and width of the images")
    seed: int = Field(0, ge=0, lt=1 << 63)
    class_scale: float = Field(-1.0, ge=0, allow_inf_nan=False, description="deviation of the classes' means")
    sample_scale: float = Field(-1.0, ge=0, allow_inf_nan=False, description="deviation of a sample from its mean")
    latent: int = Field(
        0, ge=1, le=4096, description="numbers that a network starts from; upsampled_noise: side of the small image"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        generator, classes, size = (given.get(k, cls.model_fields[k].default) for k in ("generator", "classes", "size"))
        try:
            return _defaults(generator, int(classes), int(size)) | given
        except (TypeError, ValueError):
            return given  # the fields' own checks say what is wrong

    @model_validator(mode="after")
    def _can_be_made(self) -> VirtualRecipe:
        if self.nbytes > LARGEST:
            raise ValueError(f"{self.count} images of {self.channels}x{self.size}x{self.size} are more than 4 GiB")
        if self.generator == "stylegan2" and (self.size < 8 or self.size & (self.size - 1)):
            raise ValueError(f"stylegan2 makes images of 8, 16, 32 … pixels a side, not {self.size}")
        if self.generator == "conv_decoder" and self.size % 4:
            raise ValueError(f"conv_decoder makes images whose side is a multiple of 4, not {self.size}")
        if self.generator == "upsampled_noise" and self.latent > self.size:
            raise ValueError(f"noise of {self.latent} pixels a side cannot be enlarged to {self.size}")
        return self

    @property
    def count(self) -> int:
        """Images in the set, C_v·m."""
        return self.classes * self.per_class

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the images: (C_v·m, channels, size, size)."""
        return self.count, self.channels, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Bytes of the set where it is sent: a byte per pixel and one per label, two beyond 256 classes (§8.1)."""
        return self.count * (self.channels * self.size**2 + (1 if self.classes <= 256 else 2))


def _defaults(generator: str, classes: int, size: int) -> dict[str, Any]:
    """The published numbers for 10, 100 and 200 classes; a number in between takes those of the next."""
    tier = 0 if classes <= 10 else 1 if classes <= 100 else 2
    filled: dict[str, Any] = {"per_class": (200, 500, 250)[tier]}
    if generator == "stylegan2":
        return filled | {"latent": (64, 256, 256)[tier], "class_scale": 0.5, "sample_scale": (0.3, 0.2, 0.15)[tier]}
    if generator == "conv_decoder":
        # Each class has a decoder of its own, and so needs no mean.
        return filled | {"latent": 8, "class_scale": 0.0, "sample_scale": 1.0}
    return filled | {"latent": max(4, size // 4), "class_scale": 1.0, "sample_scale": 0.5}
