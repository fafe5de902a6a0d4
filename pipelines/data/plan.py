"""Which samples, in which order, cut how: pure functions of (seed, epoch, sample id).

No state, no service, no image. Every draw comes from Philox, a counter-based generator keyed by (seed, epoch): its
output at a position does not depend on who asks or on how much is asked, so any number of workers sees the same plan.
The fourth word of the counter separates the streams, so that switching one kind of draw on moves no other: `_ORDER` for
the permutation, `_AUGMENT` for crops and flips, `POLICY` and `CUTOUT` for pixels.py, `MIX` for mixing.py,
`_SUBSET` for which samples are trained on at all.

A plan is a table of int32, a row per sample: (top, left, height, width, flip). A box may reach beyond its image only
when it has the output's size; what lies outside is black or, with crop=roll, the image's other side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.config import AugmentConfig
from pipelines.errors import UserError

Table = npt.NDArray[np.int32]
Row = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
# (height, width) of every image, [N, 2].
Sizes = npt.NDArray[np.int32]

TOP, LEFT, HEIGHT, WIDTH, FLIP = range(5)
COLUMNS = 5

_ORDER, _AUGMENT = 0, 1
POLICY, CUTOUT, MIX = 2, 3, 4
_SUBSET = 5
_TRIES = 10
# One sample's draws: area and ratio of each try, position, flip.
_DRAWS = 2 * _TRIES + 3
_CHUNK = 1 << 16


def new_table(count: int) -> Table:
    """An empty plan for `count` samples."""
    return np.zeros((count, COLUMNS), np.int32)


def generator_of(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The generator of one stream of an epoch's draws, at its beginning."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


def epoch_order(count: int, seed: int, epoch: int) -> Ids:
    """The order of training samples in an epoch: a permutation of 0..count-1, the same on every rank."""
    return generator_of(seed, epoch, _ORDER).permutation(count).astype(np.int64, copy=False)


def training_subset(count: int, kept: int, seed: int) -> Ids:
    """The samples that a run trains on, `kept` of `count`, in order: the same in every epoch and on every rank.

    A smaller subset lies within a larger one of the same seed; with `kept` equal to `count` it is 0..count-1.
    """
    return np.sort(generator_of(seed, 0, _SUBSET).permutation(count)[:kept]).astype(np.int64, copy=False)


def rank_slice(batch_size: int, rank: int, world: int) -> slice:
    """The part of each global batch that a rank takes; ranks differ by one image at most (np.array_split's rule)."""
    share, extra = divmod(batch_size, world)
    start = rank * share + min(rank, extra)
    return slice(start, start + share + (rank < extra))


def validation_slice(count: int, rank: int, world: int) -> slice:
    """The samples that a rank validates: the ranks' slices cover every sample once; some may be empty."""
    return rank_slice(count, rank, world)


def training_ids(count: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> Ids:
    """Sample ids of a rank in an epoch, [steps, its share of the batch]; the incomplete last batch is dropped."""
    steps = count // batch_size
    batches = epoch_order(count, seed, epoch)[: steps * batch_size].reshape(steps, batch_size)
    return np.ascontiguousarray(batches[:, rank_slice(batch_size, rank, world)])


def check_plan(sizes: Sizes, augment: AugmentConfig, resolution: int) -> None:
    """Raise UserError when `pad` meets an image of another size than the resolution."""
    if augment.crop == "pad" and bool(np.any(sizes != resolution)):
        raise UserError(
            f"data.augment.crop=pad needs images of {resolution} x {resolution} pixels (data.resolution); the data has "
            f"{_extent(sizes)}. Set data.resolution, or use data.augment.crop=random_resized."
        )


def fill_plan(table: Table, sizes: Sizes, augment: AugmentConfig, resolution: int, seed: int, epoch: int) -> None:
    """Fill a training plan in place.

    table [N, 5]; sizes [N, 2] as (height, width); resolution in pixels. Raises UserError like `check_plan`.
    """
    check_plan(sizes, augment, resolution)
    generator = generator_of(seed, epoch, _AUGMENT)
    # In chunks, because a million samples' draws at once are a quarter of a gigabyte; the stream is the same.
    for start in range(0, len(table), _CHUNK):
        rows, part = table[start : start + _CHUNK], sizes[start : start + _CHUNK]
        draws = generator.random((len(rows), _DRAWS))
        _fill_boxes(rows, part, augment, draws)
        rows[:, FLIP] = (draws[:, -1] < 0.5) & augment.flip


def _fill_boxes(rows: Table, sizes: Sizes, augment: AugmentConfig, draws: npt.NDArray[np.float64]) -> None:
    if augment.crop == "random_resized":
        _random_resized(rows, sizes, augment, draws)
    elif augment.crop == "pad":
        rows[:, HEIGHT : WIDTH + 1] = sizes
        rows[:, TOP : LEFT + 1] = _offsets(draws, augment.padding)
    elif augment.crop == "roll":
        rows[:, HEIGHT : WIDTH + 1] = sizes
        rows[:, TOP : LEFT + 1] = _offsets(draws, augment.roll)
    else:
        _centre_square(rows, sizes, 1.0)


def _offsets(draws: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """Whole pixels from -most to most, each as likely, [N, 2]."""
    return np.floor(draws[:, -3:-1] * (2 * most + 1)) - most


def _random_resized(rows: Table, sizes: Sizes, augment: AugmentConfig, draws: npt.NDArray[np.float64]) -> None:
    """torchvision's RandomResizedCrop: ten tries at an area and a ratio that fit, then a central crop."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    box = _fallback(height, width, augment.ratio)
    low, high = np.log(augment.ratio[0]), np.log(augment.ratio[1])
    scale_low, scale_high = augment.scale
    open_rows = np.arange(len(rows))
    for attempt in range(_TRIES):
        h, w = height[open_rows], width[open_rows]
        area = h * w * (scale_low + (scale_high - scale_low) * draws[open_rows, 2 * attempt])
        ratio = np.exp(low + (high - low) * draws[open_rows, 2 * attempt + 1])
        box_h, box_w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (box_w > 0) & (box_w <= w) & (box_h > 0) & (box_h <= h)
        chosen = open_rows[fits]
        box[chosen, 2], box[chosen, 3] = box_h[fits], box_w[fits]
        box[chosen, 0] = np.floor(draws[chosen, -3] * (h[fits] - box_h[fits] + 1))
        box[chosen, 1] = np.floor(draws[chosen, -2] * (w[fits] - box_w[fits] + 1))
        open_rows = open_rows[~fits]
    rows[:, :FLIP] = box


def _fallback(
    height: npt.NDArray[np.float64], width: npt.NDArray[np.float64], ratio: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """The largest central box whose ratio is allowed: rows of (top, left, height, width)."""
    shape = width / height
    box_h = np.where(shape < ratio[0], np.minimum(np.rint(width / ratio[0]), height), height).clip(1)
    box_w = np.where(shape > ratio[1], np.minimum(np.rint(height * ratio[1]), width), width).clip(1)
    return np.stack([(height - box_h) // 2, (width - box_w) // 2, box_h, box_w], axis=1)


def fill_evaluation_plan(table: Table, sizes: Sizes, crop_ratio: float) -> None:
    """Fill an evaluation plan in place: the central square of `crop_ratio` times the short side, no flip."""
    _centre_square(table, sizes, crop_ratio)
    table[:, FLIP] = 0


def _centre_square(rows: Table, sizes: Sizes, crop_ratio: float) -> None:
    side = np.rint(sizes.min(axis=1) * crop_ratio).astype(np.int32).clip(1)
    rows[:, TOP : LEFT + 1] = (sizes - side[:, None]) // 2
    rows[:, HEIGHT : WIDTH + 1] = side[:, None]


def _extent(sizes: Sizes) -> str:
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    smallest = f"{low[0]} x {low[1]}"
    return smallest if (low == high).all() else f"{smallest} to {high[0]} x {high[1]}"
