"""Decodes PNG, JPEG and BMP files into one array, with Pillow."""

from __future__ import annotations

import io

import numpy as np

from ..core.errors import DataError
from ..core.extras import vision_module
from .image_set import Bytes, check_size

#: The only formats that Pillow may try; fewer decoders are a smaller attack surface.
FORMATS = ("PNG", "JPEG", "BMP")
#: File name suffixes of these formats.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
#: Pillow mode -> mode it is converted to. Other modes (16 bits, floats) would lose precision and are refused.
_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
#: Largest encoded image, in bytes.
_LARGEST_FILE = 16 << 20


def decode(encoded: bytes, where: str) -> tuple[Bytes, bool]:
    """Decode one image.

    Parameters
    ----------
    encoded : bytes
        Content of a PNG, JPEG or BMP file.
    where : str
        File, and row in it, for error messages.

    Returns
    -------
    pixels : uint8 array (ch, H, W)
        One channel for gray images, otherwise three; transparency is dropped.
    lossy : bool
        Whether the format is lossy.

    Raises
    ------
    DataError
        The image is damaged, too large, in another format, or has more than 8 bits per channel.
    """
    pil = vision_module("PIL.Image")
    if len(encoded) > _LARGEST_FILE:
        raise DataError(f"{where}: an encoded image of {len(encoded) >> 20} MiB", hint="scale the images down")
    try:
        with pil.open(io.BytesIO(encoded), formats=FORMATS) as image:
            check_size(1, (image.height, image.width), where)
            if image.mode not in _MODES:
                raise DataError(
                    f"{where}: unsupported pixel mode {image.mode}", hint="convert the images to 8 bits per channel"
                )
            pixels = np.asarray(image.convert(_MODES[image.mode]), np.uint8)
            lossy = image.format == "JPEG"
    except DataError:
        raise
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error …
        raise DataError(
            f"{where}: not a {', '.join(FORMATS)} image, or damaged ({type(error).__name__})",
            hint="copy the file again, or convert it to PNG",
        ) from error
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), lossy


class ImageStack:
    """Collects decoded images of one size in one array.

    Parameters
    ----------
    count : int
        Number of images to expect.
    source : str
        File or folder of the images, for error messages.
    """

    def __init__(self, count: int, source: str) -> None:
        self._count, self._source = count, source
        self._images: Bytes | None = None
        self._filled = self._lossy = 0

    def add(self, encoded: bytes, where: str) -> None:
        """Decode and append an image; errors as for :func:`decode`, and DataError if its shape is not the first's."""
        image, lossy = decode(encoded, where)
        if self._images is None:
            check_size(self._count, image.shape, self._source)
            self._images = np.empty((self._count, *image.shape), np.uint8)
        if image.shape != self._images.shape[1:]:
            raise DataError(
                f"{where}: an image of shape {image.shape}, but earlier ones have {self._images.shape[1:]} "
                f"(channels, height, width)",
                hint="convert all images to one size and number of channels",
            )
        self._images[self._filled] = image
        self._filled += 1
        self._lossy += lossy

    def images(self) -> Bytes:
        """All images, uint8 (N, ch, H, W).

        Raises
        ------
        DataError
            There are no images, or fewer than expected.
        """
        if self._images is None or self._filled != self._count:
            raise DataError(
                f"{self._source} contains {self._filled} images, expected {self._count or 'some'}",
                hint="copy the data set again",
            )
        return self._images

    @property
    def note(self) -> str:
        """A note on the source of the pixels: lossless, or how many images are lossy."""
        if not self._lossy:
            return "lossless image files without a published checksum"
        return (
            f"lossy re-encodings: {self._lossy} of {self._count} images are JPEG, so pixels and accuracies differ from "
            f"those of the original files"
        )
