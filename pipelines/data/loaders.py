"""One loader for training and validation: the plan decides what is seen, FFCV or torch only fetches it."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from pipelines.config import DataConfig, ModelConfig
from pipelines.data import plan
from pipelines.data.beton import BetonReader
from pipelines.data.frames_loader import FramesEngine, check_kind
from pipelines.data.manifest import Manifest, beton_path, ensure_verified
from pipelines.data.mixing import Mix, Mixer, check_pairs
from pipelines.data.pixels import PixelAugment
from pipelines.data.scaling import MOST
from pipelines.errors import UserError
from pipelines.progress import Say

Split = Literal["train", "val"]
Batch = tuple[torch.Tensor, torch.Tensor]

INSTALL_FFCV = (
    "Install OpenCV's and libjpeg-turbo's headers (Debian: apt-get install libopencv-dev libturbojpeg0-dev pkg-config) "
    "and then, in a checkout: pip install '.[ffcv]'"
)


class Engine(Protocol):
    """What turns sample ids into images or frames; `plan` rows are read when a batch is made."""

    def images(self, ids: plan.Ids, resolution: int) -> Generator[torch.Tensor, None, None]:
        """Images uint8 [B, 3, R, R], or frames uint8 [B, T, 2, R, R], in batches, in the order of `ids`.

        R may be less than the engine was made for.
        """

    def close(self) -> None:
        """Let go of processes."""


class BatchLoader:
    """One rank's batches of one split.

    steps: batches of this rank in an epoch. samples: images of an epoch over all ranks. local_samples: this rank's.
    manifest: the data set. backend: "ffcv" or "torch" for images, "numpy" for event frames.
    """

    def __init__(
        self, engine: Engine, backend: str, manifest: Manifest, reader: BetonReader, table: plan.Table, share: _Share
    ) -> None:
        self.backend, self.manifest = backend, manifest
        self._engine, self._table, self._share = engine, table, share
        self._labels = torch.from_numpy(reader.labels)
        self._sizes = reader.sizes
        self._running: Generator[Batch, None, None] | None = None
        self._pixels, self._mixer = share.pixels(), share.mixer()
        self.steps, self.samples, self.local_samples = share.steps, share.samples, share.local_samples
        if share.split == "val":
            plan.fill_evaluation_plan(table, self._sizes, share.data.crop_ratio)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Images uint8 [B, 3, R, R] or frames uint8 [B, T, 2, R, R], and labels int64 [B], from `start_step` on.

        R is the epoch's resolution. Images are a channels-last view of memory of their own, page-locked where there is
        CUDA: they stay valid for as long as they are held. Asking for an epoch ends one that is still running. Raises
        ServiceError when the pipeline fails.
        """
        if not 0 <= start_step <= self.steps:
            raise ValueError(f"start_step must be 0 to {self.steps}, got {start_step}")
        self._stop()
        self._running = self._batches(epoch, start_step)
        return self._running

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        ids = self._share.ids(epoch)[start_step * self._share.batch_size :]
        if len(ids) == 0:
            return
        self._share.fill(self._table, self._sizes, epoch)
        start = 0
        with closing(self._engine.images(ids, self._share.resolution(epoch))) as images:
            for batch in self._pixels.through(images, ids, epoch) if self._pixels else images:
                yield batch, self._labels[ids[start : start + len(batch)]]
                start += len(batch)

    def mixing(self, epoch: int, step: int) -> Mix | None:
        """How to mix the pairs of a batch of this rank; None where the recipe mixes nothing."""
        return self._mixer.batch(epoch, step) if self._mixer else None

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def close(self) -> None:
        """End a running epoch and the pipeline. The loader is not used after this."""
        self._stop()
        if self._pixels:
            self._pixels.close()
        self._engine.close()


class _Share:
    """Which samples a rank sees."""

    def __init__(self, split: Split, count: int, data: DataConfig, seed: int, rank: int, world: int) -> None:
        self.split, self.data = split, data
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        part = plan.rank_slice(data.batch_size, rank, world)
        self.batch_size = part.stop - part.start
        if split == "train":
            self._subset = plan.training_subset(count, data.kept(count), seed)
            self.steps = len(self._subset) // data.batch_size
            self.samples = self.steps * data.batch_size
            self.local_samples = self.steps * self.batch_size
        else:
            own = plan.validation_slice(count, rank, world)
            self.samples, self.local_samples = count, own.stop - own.start
            self.steps = -(-self.local_samples // self.batch_size)

    def ids(self, epoch: int) -> plan.Ids:
        """Sample ids of this rank in an epoch, in order."""
        if self.split == "val":
            own = plan.validation_slice(self._count, self._rank, self._world)
            return np.arange(own.start, own.stop, dtype=np.int64)
        size, kept = self.data.batch_size, len(self._subset)
        return self._subset[plan.training_ids(kept, size, self._seed, epoch, self._rank, self._world).ravel()]

    def fill(self, table: plan.Table, sizes: plan.Sizes, epoch: int) -> None:
        """Write the epoch's plan; validation has the same one always."""
        if self.split == "train":
            plan.fill_plan(table, sizes, self.data.augment, self.data.resolution, self._seed, epoch)

    def resolution(self, epoch: int) -> int:
        """Pixels a side of an epoch's images."""
        return self.data.resolution_in(epoch) if self.split == "train" else self.data.resolution

    def pixels(self) -> PixelAugment | None:
        """What changes the images after the crop, if anything does."""
        wanted = self.split == "train" and PixelAugment.wanted(self.data.augment)
        return PixelAugment(self.data, self._seed, self._count) if wanted else None

    def mixer(self) -> Mixer | None:
        """What says how pairs are mixed, if they are."""
        wanted = self.split == "train" and self.data.augment.mix.enabled
        return Mixer(self.data, self._seed, self._count, self.batch_size, self.ids) if wanted else None


def open_loader(
    folder: str | Path,
    split: Split,
    *,
    data: DataConfig,
    seed: int,
    rank: int = 0,
    world: int = 1,
    expect_classes: int | None = None,
    model: ModelConfig | None = None,
    say: Say = lambda _: None,
) -> BatchLoader:
    """A loader of a built data set; `data.batch_size` is the global batch, of which this rank takes its share.

    "train" is `data.share` of the images, shuffled and augmented, and drops the incomplete last batch; "val" is all of
    them in order, each once over all ranks. Order and augmentation depend on (seed, epoch, sample id) alone: not on the
    loader, its threads or the world. Event frames come through NumPy whatever `data.loader` says. The data must be what
    `model` takes, where it is given.
    Raises UserError for a data set that is missing, damaged, another, or smaller than a batch.
    """
    manifest = ensure_verified(folder, expect_name=data.dataset, expect_classes=expect_classes, say=say)
    path = beton_path(folder, split)
    reader = BetonReader(path)
    _check_batch(split, len(reader), data, rank, world)
    share = _Share(split, len(reader), data, seed, rank, world)
    table = plan.new_table(len(reader))
    check_kind(reader.layout.frames, data, model)
    if split == "train":
        # A plan that cannot be filled is a user's mistake: better said now than at the first batch.
        plan.check_plan(reader.sizes, data.augment, data.resolution)
        check_pairs(data, world)
    backend = "numpy" if reader.layout.frames else _choose(data.loader, say)
    engine = _engine(backend, data)(
        path, table, resolution=data.resolution, batch_size=share.batch_size, threads=data.threads
    )
    return BatchLoader(engine, backend, manifest, reader, table, share)


def check_data(
    folder: str | Path, data: DataConfig, model: ModelConfig, *, world: int, say: Say = lambda _: None
) -> None:
    """Raise UserError for a batch, a crop, a loader or a network that cannot be, so that no worker starts in vain.

    Says once where FFCV is missing and torch loads instead, or where FFCV was asked for and event frames do without.
    """
    reader = BetonReader(beton_path(folder, "train"))
    _check_batch("train", len(reader), data, 0, world)
    check_kind(reader.layout.frames, data, model)
    plan.check_plan(reader.sizes, data.augment, data.resolution)
    check_pairs(data, world)
    if reader.layout.frames is None:
        _choose(data.loader, say)
    elif data.loader == "ffcv":
        say("event frames are read by NumPy from a memory map, not by FFCV: there is nothing to decode")


def _check_batch(split: Split, count: int, data: DataConfig, rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 to world - 1, got rank {rank} of {world}")
    batch_size, kept = data.batch_size, data.kept(count)
    if batch_size < world:
        raise UserError(f"data.batch_size={batch_size} is less than {world} workers. Raise it or lower run.workers.")
    if split == "val" or kept >= batch_size:
        return
    if count < batch_size:
        raise UserError(f"{count} training images do not fill one batch. Set data.batch_size to {count} or less.")
    enough = math.ceil(1e4 * batch_size / count) / 1e4
    raise UserError(
        f"data.share={data.share} of {count} training images is {kept}, which do not fill one batch of {batch_size}. "
        f"Set data.share to {enough:g} or more, or lower data.batch_size."
    )


@functools.cache
def why_absent() -> str | None:
    """Why FFCV cannot be used here, None when it can. Its import may fail for lack of a system library as well."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            # It uses parts of Python that are on their way out, which is nothing that our users can change.
            warnings.simplefilter("ignore")
            import ffcv  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401

            import pipelines.data.ffcv_loader  # noqa: F401
    # A compiled extension may raise anything while it is imported.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    finally:
        # FFCV sets torch to one thread when it is imported.
        torch.set_num_threads(threads)
    return None


def _choose(wanted: str, say: Say) -> str:
    if wanted == "torch":
        return "torch"
    reason = why_absent()
    if reason is None:
        return "ffcv"
    if wanted == "ffcv":
        raise UserError(
            f"data.loader=ffcv, but FFCV does not import ({reason}). {INSTALL_FFCV}; or set data.loader=torch."
        )
    say(f"FFCV does not import ({reason}): loading through torch, same images, slower. {INSTALL_FFCV}.")
    return "torch"


def _engine(backend: str, data: DataConfig) -> Callable[..., Engine]:
    most = MOST if data.decode == "scaled" else 1
    if backend == "ffcv":
        from pipelines.data.ffcv_loader import FfcvEngine

        return functools.partial(FfcvEngine, most=most)
    if backend == "numpy":
        return functools.partial(FramesEngine, wrap=data.augment.crop == "roll")
    from pipelines.data.torch_loader import TorchEngine

    return functools.partial(TorchEngine, most=most)
