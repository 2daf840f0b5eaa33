"""The recipe of a virtual data set: all parameters that determine its images."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Generator = Literal["upsampled_noise", "conv_decoder", "stylegan2"]

#: Largest size of a set in bytes; recipes come from peers, so it is checked before memory is allocated.
MAX_BYTES = 1 << 32


class VirtualRecipe(BaseModel):
    """Generator, sizes and seed of a virtual data set (``docs/methods/vhl.md``, section 2.1).

    Omitted fields are filled in at construction with the published defaults for the generator and the number of
    classes, so a recipe always holds every value. ``per_class``, ``class_scale``, ``sample_scale`` and ``latent`` have
    such defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generator: Generator = "upsampled_noise"
    classes: int = Field(10, ge=1, le=65_536, description="virtual classes, C_v")
    per_class: int = Field(0, ge=1, description="images per class, m")
    channels: int = Field(3, ge=1, le=64)
    size: int = Field(32, ge=4, le=1024, description="height and width of the images")
    seed: int = Field(0, ge=0, lt=1 << 63)
    class_scale: float = Field(
        -1.0, ge=0, allow_inf_nan=False, description="standard deviation of the class means, s_mu"
    )
    sample_scale: float = Field(
        -1.0, ge=0, allow_inf_nan=False, description="standard deviation of a sample around its class mean, s_z"
    )
    latent: int = Field(
        0, ge=1, le=4096, description="elements of a network's input z; upsampled_noise: side of the coarse grid"
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
            return given  # field validation reports the error

    @model_validator(mode="after")
    def _generator_supports_size(self) -> VirtualRecipe:
        if self.nbytes > MAX_BYTES:
            raise ValueError(f"{self.count} images of {self.channels}x{self.size}x{self.size} exceed 4 GiB")
        if self.generator == "stylegan2" and (self.size < 8 or self.size & (self.size - 1)):
            raise ValueError(f"size of stylegan2 images must be 8, 16, 32 …, not {self.size}")
        if self.generator == "conv_decoder" and self.size % 4:
            raise ValueError(f"size of conv_decoder images must be a multiple of 4, not {self.size}")
        if self.generator == "upsampled_noise" and self.latent > self.size:
            raise ValueError(f"a grid of side latent={self.latent} cannot be upsampled to size={self.size}")
        return self

    @property
    def count(self) -> int:
        """Number of images, C_v·m."""
        return self.classes * self.per_class

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the images: (C_v·m, channels, size, size)."""
        return self.count, self.channels, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Bytes of the images; labels need none, since they follow from the recipe."""
        return self.count * self.channels * self.size**2


def _defaults(generator: str, classes: int, size: int) -> dict[str, Any]:
    """Published values for 10, 100 and 200 classes; other numbers of classes use the next larger of these."""
    tier = 0 if classes <= 10 else 1 if classes <= 100 else 2
    filled: dict[str, Any] = {"per_class": (200, 500, 250)[tier]}
    if generator == "stylegan2":
        return filled | {"latent": (64, 256, 256)[tier], "class_scale": 0.5, "sample_scale": (0.3, 0.2, 0.15)[tier]}
    if generator == "conv_decoder":
        # Each class has its own decoder, so no class mean is needed.
        return filled | {"latent": 8, "class_scale": 0.0, "sample_scale": 1.0}
    return filled | {"latent": max(4, size // 4), "class_scale": 1.0, "sample_scale": 0.5}
