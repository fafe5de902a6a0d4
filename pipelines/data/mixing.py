"""Which pairs of a batch are mixed, how much and where: a pure function of (seed, epoch, ids of the pair).

A pair is two neighbours in the epoch's order, so no rank needs another's images and no image is decoded twice. The
draws are timm's (Mixup, mode "pair"); agmm/mixing.py does what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import DataConfig, MixConfig
from pipelines.data.plan import MIX, Ids, generator_of
from pipelines.errors import UserError

Floats = npt.NDArray[np.float64]


class Mix(NamedTuple):
    """For each pair: the share that an image keeps, float32 [P], and the box that it gives, int32 [P, 4]."""

    share: torch.Tensor
    box: torch.Tensor


def check_pairs(data: DataConfig, world: int) -> None:
    """Raise UserError when mixing is on and a worker's share of a batch is odd: a pair would lie on two workers."""
    if data.augment.mix.enabled and data.batch_size % (2 * world):
        down = data.batch_size // (2 * world) * 2 * world
        sizes = " or ".join(str(size) for size in (down, down + 2 * world) if size)
        raise UserError(
            f"data.augment.mix mixes pairs, so each worker needs an even share of data.batch_size; got "
            f"{data.batch_size} for {world} workers. Set data.batch_size to a multiple of {2 * world} ({sizes}), "
            f"change run.workers, or set data.augment.mix.probability=0."
        )


def draw_mixes(ids: Ids, count: int, mix: MixConfig, resolution: int, seed: int, epoch: int) -> Mix:
    """The mixes of pairs (ids[0], ids[1]), (ids[2], ids[3]), ...; a pair's draws are its first member's row of `count`.

    Boxes are in pixels of a square image of `resolution` a side.
    """
    first = ids[::2]
    generator = generator_of(seed, epoch, MIX)
    chance, switch, y, x = generator.random((count, 4)).T
    # The rejection in a beta takes a varying number of draws: these come last, in one block for all samples.
    blended = generator.beta(mix.mixup, mix.mixup, count) if mix.mixup else np.ones(count)
    cut = generator.beta(mix.cutmix, mix.cutmix, count) if mix.cutmix else np.ones(count)
    use_cut = switch < mix.switch_probability if mix.mixup and mix.cutmix else np.full(count, mix.cutmix > 0)
    share = np.where(chance < mix.probability, np.where(use_cut, cut, blended), 1.0)[first]
    box = _boxes(np.where(use_cut[first], share, 1.0), y[first], x[first], resolution)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    # What the box really covers, once the borders have clipped it.
    share = np.where(use_cut[first], 1 - area / resolution**2, share)
    return Mix(torch.from_numpy(share.astype(np.float32)), torch.from_numpy(box))


def _boxes(share: Floats, y: Floats, x: Floats, resolution: int) -> npt.NDArray[np.int32]:
    """CutMix's boxes (top, bottom, left, right), clipped: area 1 - share, centre drawn from all pixels."""
    side = (resolution * np.sqrt(1 - share)).astype(np.int32)
    centres = (np.floor(centre * resolution).astype(np.int32) for centre in (y, x))
    ends = [end for centre in centres for end in (centre - side // 2, centre + (side + 1) // 2)]
    return np.stack(ends, axis=1).clip(0, resolution)


class Mixer:
    """The mixes of a rank's batches, by epoch and step; holds one epoch's."""

    def __init__(self, data: DataConfig, seed: int, count: int, batch_size: int, ids: Callable[[int], Ids]) -> None:
        """`count` samples in the split; `batch_size` is the rank's share; `ids` gives its samples in an epoch."""
        self._data, self._seed, self._count, self._pairs, self._ids = data, seed, count, batch_size // 2, ids
        self._epoch: int | None = None

    def batch(self, epoch: int, step: int) -> Mix:
        """The mixes of the pairs of one batch."""
        if epoch != self._epoch:
            size, mix = self._data.resolution_in(epoch), self._data.augment.mix
            self._drawn = draw_mixes(self._ids(epoch), self._count, mix, size, self._seed, epoch)
            self._epoch = epoch
        pairs = slice(step * self._pairs, (step + 1) * self._pairs)
        return Mix(self._drawn.share[pairs], self._drawn.box[pairs])
