"""A picture of any size as a packed network takes it: what evaluation did to the images that its accuracy is of."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agmm.packed.description import Input


def open_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file, RGB `[H, W, 3]`; orientation in EXIF is ignored, as in training.

    Raises OSError for what cannot be read, and ValueError for what is no whole image, or has so many pixels that it
    may be meant to fill the memory (Pillow's `MAX_IMAGE_PIXELS`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata are no fault of the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as picture:
                return np.asarray(to_rgb(picture))
        except (OSError, ValueError):
            raise
        except Exception as error:  # decoders raise whatever their format's parser stumbles on
            raise ValueError(f"it cannot be decoded: {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: transparency is dropped, of 16 bits the upper 8 stay.

    Raises ValueError for pixels in floating point.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16 bits at 255
        picture = Image.fromarray(np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pixels, which have no agreed range; convert the file to 8 bits")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def fit(pixels_HW3: NDArray[np.uint8], taken: Input) -> NDArray[np.uint8]:
    """The central square of `crop_ratio` times the short side, resized by area to what the network takes."""
    height, width = pixels_HW3.shape[:2]
    side = max(round(min(height, width) * taken.crop_ratio), 1)
    top, left = (height - side) // 2, (width - side) // 2
    box = pixels_HW3[top : top + side, left : left + side]
    if box.shape[:2] == (taken.height, taken.width):
        return box
    return np.asarray(cv2.resize(box, (taken.width, taken.height), interpolation=cv2.INTER_AREA), np.uint8)
