"""What training does to a picture after crop and flip: AutoAugment or RandAugment, then Cutout.

The operations and their strengths are torchvision's; the draws are ours, because torchvision's come from a global
generator. Draws are a table, a row per sample, as in plan.py. Both loaders' batches go through this one place, in
threads beside the training step.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from agmm import compat as compat  # torchvision beside a CPU-only torch: before torchvision

# isort: split
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode, RandAugment

# Private there, and where an operation's name becomes a call; tests hold it against the public classes.
from torchvision.transforms.autoaugment import _apply_op

from pipelines.config import AugmentConfig, DataConfig
from pipelines.data.plan import CUTOUT, POLICY, Ids, generator_of

Draws = npt.NDArray[np.float32]
Colour = tuple[int, int, int]
# An operation by torchvision's name and its magnitude, sign included.
Operation = tuple[str, float]
# From one sample's draws, each in [0, 1), to its operations.
Policy = Callable[[list[float]], list[Operation]]
# For each operation its strengths by level, none where it has no strength, and whether it has a direction.
_Strengths = dict[str, tuple[list[float], bool]]

# Batches that are augmented while the training step has the one before them.
_AHEAD = 2
# Strengths that torchvision's two policies tell apart.
_AUTO_BINS, _RAND_BINS = 10, 31


@functools.lru_cache(maxsize=8)
def make_policy(augment: AugmentConfig, resolution: int) -> Policy:
    """What the recipe's policy does to images of `resolution` pixels a side, which bound its translations."""
    if augment.policy == "autoaugment_cifar10":
        return _auto_augment(resolution)
    if augment.policy == "randaugment":
        return _rand_augment(augment.randaugment.num_ops, augment.randaugment.magnitude, resolution)
    return lambda _: []


def _auto_augment(resolution: int) -> Policy:
    """AutoAugment's 25 sub-policies for CIFAR-10 (Cubuk et al., 2019): two operations, each with a chance.

    Draws: the sub-policy, two chances, two signs.
    """
    transform = AutoAugment(AutoAugmentPolicy.CIFAR10)
    policies, strengths = transform.policies, _strengths(transform, _AUTO_BINS, resolution)

    def choose(draws: list[float]) -> list[Operation]:
        which, chances, signs = draws[0], draws[1:3], draws[3:5]
        steps = zip(policies[int(which * len(policies))], chances, signs, strict=True)
        return [_operation(strengths, name, level, sign) for (name, p, level), chance, sign in steps if chance < p]

    return choose


def _rand_augment(num_ops: int, magnitude: int, resolution: int) -> Policy:
    """RandAugment (Cubuk et al., 2020): operations drawn evenly, all of one strength.

    Draws: the operations, then their signs.
    """
    strengths = _strengths(RandAugment(), _RAND_BINS, resolution)
    names = list(strengths)

    def choose(draws: list[float]) -> list[Operation]:
        steps = zip(draws[:num_ops], draws[num_ops:], strict=True)
        return [_operation(strengths, names[int(which * len(names))], magnitude, sign) for which, sign in steps]

    return choose


def _strengths(transform: AutoAugment | RandAugment, bins: int, resolution: int) -> _Strengths:
    space = transform._augmentation_space(bins, (resolution, resolution))
    return {name: (levels.tolist() if levels.ndim else [], signed) for name, (levels, signed) in space.items()}


def _operation(strengths: _Strengths, name: str, level: int | None, sign: float) -> Operation:
    """An operation at a level; one that has a direction goes either way with probability one half."""
    levels, signed = strengths[name]
    magnitude = float(levels[level]) if levels and level is not None else 0.0
    return name, -magnitude if signed and sign < 0.5 else magnitude


def apply_operations(image: npt.NDArray[np.uint8], operations: list[Operation], fill: Colour) -> None:
    """Apply operations to one image [R, R, 3] in place; `fill` is the colour of what comes into view."""
    picture = Image.fromarray(image)
    for name, magnitude in operations:
        picture = _apply_op(picture, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=list(fill))
    image[...] = np.asarray(picture)


def cut_out(image: npt.NDArray[np.uint8], y: float, x: float, size: int, fill: Colour) -> None:
    """Cutout (DeVries & Taylor, 2017) in place: a square around a pixel drawn from all; the borders clip it."""
    height, width = image.shape[:2]
    top, left = int(y * height) - size // 2, int(x * width) - size // 2
    image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = fill


class PixelAugment:
    """Policy and Cutout for the batches of one rank. What they uncover gets the data's mean colour.

    Mean colour is zero after normalisation but for the rounding to eight bits.
    """

    def __init__(self, data: DataConfig, seed: int, count: int) -> None:
        """`count` is the number of samples of the split."""
        self._data, self._seed, self._count = data, seed, count
        red, green, blue = (round(255 * mean) for mean in data.mean)
        self._fill = (red, green, blue)
        self._pool = ThreadPoolExecutor(data.threads, thread_name_prefix="augment")

    @staticmethod
    def wanted(augment: AugmentConfig) -> bool:
        """Whether there is anything to do."""
        return augment.policy != "none" or augment.cutout > 0

    def through(self, batches: Iterable[torch.Tensor], ids: Ids, epoch: int) -> Generator[torch.Tensor, None, None]:
        """The batches of uint8 images [B, 3, R, R], augmented in place; `ids` are their samples, in order."""
        draws = self._draws(ids, epoch)
        waiting: deque[tuple[torch.Tensor, list[Future[None]]]] = deque()
        start = 0
        for batch in batches:
            rows = [part[start : start + len(batch)] for part in draws]
            waiting.append((batch, self._submit(batch, *rows)))
            start += len(batch)
            if len(waiting) > _AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def _draws(self, ids: Ids, epoch: int) -> tuple[Draws, Draws]:
        """Rows of the policy's and of Cutout's draws for `ids`."""
        policy = generator_of(self._seed, epoch, POLICY)
        cutout = generator_of(self._seed, epoch, CUTOUT)
        augment = self._data.augment
        columns = {"none": 0, "autoaugment_cifar10": 5, "randaugment": 2 * augment.randaugment.num_ops}[augment.policy]
        return (
            policy.random((self._count, columns), np.float32)[ids],
            cutout.random((self._count, 2), np.float32)[ids],
        )

    def _submit(self, batch: torch.Tensor, policy: Draws, cutout: Draws) -> list[Future[None]]:
        """Start on a batch; each thread gets a part of it."""
        images, threads = batch.permute(0, 2, 3, 1).numpy(), self._data.threads
        return [
            self._pool.submit(self._augment, images[part::threads], policy[part::threads], cutout[part::threads])
            for part in range(threads)
        ]

    def _augment(self, images: npt.NDArray[np.uint8], policy: Draws, cutout: Draws) -> None:
        augment = self._data.augment
        choose = make_policy(augment, images.shape[1])
        for image, row, (y, x) in zip(images, policy.tolist(), cutout.tolist(), strict=True):
            if operations := choose(row):
                apply_operations(image, operations, self._fill)
            if augment.cutout:
                cut_out(image, y, x, augment.cutout, self._fill)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _finished(batch: torch.Tensor, parts: list[Future[None]]) -> torch.Tensor:
    for part in parts:
        part.result()
    return batch
