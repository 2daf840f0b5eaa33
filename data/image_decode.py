"""PNG, JPEG and BMP files into one array, with PIL."""

from __future__ import annotations

import io

import numpy as np

from ..core.errors import DataError
from ..core.extras import vision_module
from .image_set import Bytes, check_size

#: The only formats that PIL may try: fewer decoders, fewer ways in for a bad file.
FORMATS = ("PNG", "JPEG", "BMP")
#: Endings of such files.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
#: PIL's names of pixels -> what they become. Others (16 bits, floats) would lose more than a conversion may.
_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
#: An encoded image of the largest size takes less.
_LARGEST_FILE = 16 << 20


def decode(encoded: bytes, where: str) -> tuple[Bytes, bool]:
    """The pixels of one image.

    Parameters
    ----------
    encoded : bytes
        A whole PNG, JPEG or BMP file.
    where : str
        File, and row in it, for messages.

    Returns
    -------
    uint8 array (ch, H, W), bool
        Gray images have one channel, all others three; transparency is dropped. True if the format is lossy.

    Raises
    ------
    DataError
        The bytes are damaged, of another format, too large, or have pixels that do not fit 8 bits.
    """
    pil = vision_module("PIL.Image")
    if len(encoded) > _LARGEST_FILE:
        raise DataError(f"{where}: {len(encoded) >> 20} MiB for one image", hint="scale the images down")
    try:
        with pil.open(io.BytesIO(encoded), formats=FORMATS) as image:
            check_size(1, (image.height, image.width), where)
            if image.mode not in _MODES:
                raise DataError(f"{where}: pixels of kind {image.mode}", hint="convert the images to 8 bits a channel")
            pixels = np.asarray(image.convert(_MODES[image.mode]), np.uint8)
            lossy = image.format == "JPEG"
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever they stumble on: OSError, SyntaxError, struct.error …
        raise DataError(
            f"{where}: no {', '.join(FORMATS)} image, or a damaged one ({type(error).__name__})",
            hint="copy the file again, or convert it to PNG",
        ) from error
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), lossy


class ImageStack:
    """Gathers images of one size, one by one, into one array.

    Parameters
    ----------
    count : int
        How many will come.
    source : str
        The file or folder that says so, for messages.
    """

    def __init__(self, count: int, source: str) -> None:
        self._count, self._source = count, source
        self._images: Bytes | None = None
        self._filled = self._lossy = 0

    def add(self, encoded: bytes, where: str) -> None:
        """Decode the next image; errors as for :func:`decode`, and DataError if its size is not that of the first."""
        image, lossy = decode(encoded, where)
        if self._images is None:
            check_size(self._count, image.shape, self._source)
            self._images = np.empty((self._count, *image.shape), np.uint8)
        if image.shape != self._images.shape[1:]:
            raise DataError(
                f"{where}: an image of shape {image.shape} among others of {self._images.shape[1:]} "
                f"(channels, height, width)",
                hint="bring all images to one size and one number of channels",
            )
        self._images[self._filled] = image
        self._filled += 1
        self._lossy += lossy

    def images(self) -> Bytes:
        """All of them, uint8 (N, ch, H, W).

        Raises
        ------
        DataError
            There are none, or fewer than were announced.
        """
        if self._images is None or self._filled != self._count:
            raise DataError(
                f"{self._source} holds {self._filled} images where {self._count or 'some'} belong",
                hint="copy the data set again",
            )
        return self._images

    @property
    def note(self) -> str:
        """Says whether pixels were lost."""
        if not self._lossy:
            return "lossless image files, not compared with any published checksum"
        return (
            f"lossy re-encodings: {self._lossy} of {self._count} images are JPEG, so pixels and accuracies differ from "
            f"those of the original files"
        )
