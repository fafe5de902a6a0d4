"""From whatever a source holds to what a `.beton` stores: RGB, as a JPEG file or as pixels, and known to decode."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from agmm.packed.picture import to_rgb
from pipelines.data.beton import LARGEST_IMAGE, LARGEST_SIDE
from pipelines.data.layout import JPG, RAW

_JPEG_QUALITY = 95
_JPEG_FORMATS = ("JPEG", "MPO")


class BrokenImage(ValueError):
    """This payload is not an image that can be decoded whole; the text says why."""


@dataclass(frozen=True)
class Prepared:
    """What is stored of one image or recording. `converted` is the colour mode it came in when that was not RGB."""

    mode: int
    height: int
    width: int
    data: bytes | npt.NDArray[np.uint8]
    converted: str | None = None


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Make Pillow refuse cut-short files and decompression bombs in every thread while images are prepared."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            # Remarks on odd metadata are no fault of the pixels; an image past Pillow's limit is.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def prepare(payload: bytes | npt.NDArray[np.uint8]) -> Prepared:
    """Decode an image whole and say what to store of it. Raises BrokenImage.

    A JPEG file in RGB is stored byte for byte: no second loss. Like everywhere in the field, its EXIF orientation is
    ignored. A JPEG file in grey, CMYK or another mode becomes an RGB one of quality 95 without chroma subsampling;
    every other format is stored as pixels, without loss. Transparency is dropped.
    """
    if isinstance(payload, np.ndarray):
        height, width, channels = payload.shape
        assert channels == 3
        assert payload.dtype == np.uint8
        return _checked(Prepared(RAW, height, width, payload))
    try:
        return _checked(_decode(payload))
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Pillow's text has an address of memory in it, and this reason is stored in the manifest.
        raise BrokenImage("not an image file of a known format") from error
    # Pillow's decoders raise whatever their format's parser stumbles on: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise BrokenImage(str(error)) from error


def rgb_pixels(prepared: Prepared) -> npt.NDArray[np.uint8]:
    """The pixels [height, width, 3] of what `prepare` made of an image."""
    if isinstance(prepared.data, bytes):
        return np.asarray(Image.open(io.BytesIO(prepared.data)).convert("RGB"))
    return prepared.data


def _decode(payload: bytes) -> Prepared:
    with Image.open(io.BytesIO(payload)) as image:
        image.load()
        width, height = image.size
        converted = None if image.mode == "RGB" else image.mode
        if image.format not in _JPEG_FORMATS:
            return Prepared(RAW, height, width, np.asarray(to_rgb(image)), converted)
        if converted is None:
            return Prepared(JPG, height, width, payload)
        out = io.BytesIO()
        to_rgb(image).save(out, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
        return Prepared(JPG, height, width, out.getvalue(), converted)


def _checked(prepared: Prepared) -> Prepared:
    size = len(prepared.data) if isinstance(prepared.data, bytes) else prepared.data.nbytes
    if max(prepared.height, prepared.width) > LARGEST_SIDE or size > LARGEST_IMAGE:
        raise BrokenImage(f"{prepared.height} x {prepared.width} pixels; allowed are {LARGEST_SIDE} a side and 2 GiB")
    if size == 0:
        raise BrokenImage("no pixels")
    return prepared
