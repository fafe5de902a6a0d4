"""How much smaller a JPEG image is decoded when its planned box is known before: one rule for every loader.

libjpeg's decoders give an image at 1/2, 1/4 and 1/8 of its sides for less than the whole one costs: a block of 8 x 8
becomes 4 x 4, 2 x 2 or 1 pixel in the inverse transform itself. The eighths between (M/8) exist too, and are slower
than 8/8: nobody has vectorised them.

A planned box has the same place in the smaller image, its coordinates divided, between pixels as may be: rounding them
would move the picture by up to half a pixel of the output. So such a box is resized by the exact area, `shrink`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST = 8


# Plain integers and no library, because FFCV's compiled decoder compiles these very functions.
def reduction(height: int, width: int, resolution: int, most: int = MOST) -> int:
    """1, 2, 4 or 8: the most that leaves a box of height x width at least `resolution` pixels a side, up to `most`."""
    times = 1
    while 2 * times <= most and min(height, width) >= 2 * times * resolution:
        times *= 2
    return times


def reduced_side(side: int, times: int) -> int:
    """Pixels of an image's side that was decoded so many times smaller: libjpeg rounds up."""
    return (side + times - 1) // times


def shrink(
    image: npt.NDArray[np.uint8], top: float, left: float, height: float, width: float, resolution: int
) -> npt.NDArray[np.uint8]:
    """A box of an image, at [resolution, resolution, 3]: what the compiled one is tested against.

    An output pixel is the mean of what it covers, pixels on its border by their share. The box is inside the image and
    has at least `resolution` pixels a side.
    """
    down = _shares(top, height, image.shape[0], resolution)
    across = _shares(left, width, image.shape[1], resolution)
    rows = np.tensordot(down, image.astype(np.float32), axes=1)
    return (np.tensordot(rows, across, axes=(1, 1)).swapaxes(1, 2) + np.float32(0.5)).astype(np.uint8)


def _shares(start: float, length: float, side: int, parts: int) -> npt.NDArray[np.float32]:
    """Which share of each of so many equal parts of a span each of an axis' pixels covers, [parts, side]."""
    borders = start + length * np.arange(parts + 1) / parts
    pixels = np.arange(side)
    low, high = borders[:-1, None], borders[1:, None]
    covered = (np.minimum(high, pixels + 1) - np.maximum(low, pixels)).clip(0)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
