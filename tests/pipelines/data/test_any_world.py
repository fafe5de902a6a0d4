"""Any number of workers, changed in the middle of an epoch: each global batch is the same, each sample comes once."""

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.config import DataConfig
from pipelines.data.build import build
from pipelines.data.loaders import BatchLoader, Split, open_loader
from pipelines.data.plan import epoch_order, rank_slice, training_ids, validation_slice
from pipelines.data.sources import open_source

# Training images and workers: none divides the other, nor the batch; more workers than validation images, too.
COUNTS = (7, 13, 29, 31, 47, 101)
WORLDS = (2, 3, 4, 5, 7)
BATCH = 7


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 300),
    batch=st.integers(1, 40),
    worlds=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    data=st.data(),
)
def test_global_batches_are_those_of_one_worker(count: int, batch: int, worlds: list[int], data: st.DataObject) -> None:
    """The step at which each world takes over is drawn, the epoch's first and last included."""
    batch = min(max(batch, *worlds), count)
    worlds = [min(world, batch) for world in worlds]
    steps = count // batch
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), min_size=len(worlds) - 1, max_size=len(worlds) - 1)))
    seen = []
    for world, start, stop in zip(worlds, [0, *cuts], [*cuts, steps], strict=True):
        ranks = [training_ids(count, batch, 5, 1, rank, world) for rank in range(world)]
        seen += [np.concatenate([ids[step] for ids in ranks]).tolist() for step in range(start, stop)]
    assert seen == epoch_order(count, 5, 1)[: steps * batch].reshape(steps, batch).tolist()


@given(count=st.integers(0, 300), world=st.integers(1, 40))
def test_slices_cover_everything_once_and_differ_by_one_at_most(count: int, world: int) -> None:
    slices = [rank_slice(count, rank, world) for rank in range(world)]
    assert [each for part in slices for each in range(count)[part]] == list(range(count))
    sizes = {part.stop - part.start for part in slices}
    assert max(sizes) - min(sizes) <= 1
    assert [validation_slice(count, rank, world) for rank in range(world)] == slices


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A built data set of so many training images and a third as many to validate, each of a colour of its own."""

    @functools.cache
    def make(count: int) -> Path:
        root = tmp_path_factory.mktemp(f"numbered{count}")
        for split, size in (("train", count), ("val", count // 3)):
            for number in range(size):
                path = root / "images" / split / f"class{number % 2}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        build(open_source(root / "images", root, name="numbered"), root / "built")
        return root / "built"

    return make


def _open(folder: Path, split: Split, rank: int, world: int, share: float = 1.0) -> BatchLoader:
    data = DataConfig(dataset="numbered", resolution=8, batch_size=BATCH, loader="torch", share=share)
    return open_loader(folder, split, data=data, seed=11, rank=rank, world=world)


def _numbers(loader: BatchLoader, epoch: int, start_step: int = 0) -> list[list[int]]:
    """The numbers of the images in each batch."""
    return [_colours(images.numpy()) for images, _ in loader.epoch(epoch, start_step)]


def _colours(images: npt.NDArray[np.uint8]) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", COUNTS)
def test_every_sample_is_trained_on_and_validated_exactly_once(
    numbered: Callable[[int], Path], count: int, world: int
) -> None:
    """30 odd pairs, through real files; only the incomplete last batch is left out of an epoch."""
    with ExitStack() as opened:
        train, val = (
            [opened.enter_context(closing(_open(numbered(count), split, rank, world))) for rank in range(world)]
            for split in ("train", "val")
        )
        whole = opened.enter_context(closing(_open(numbered(count), "train", 0, 1)))
        batches = zip(*(_numbers(loader, 2) for loader in train), strict=True)
        assert [list(chain(*parts)) for parts in batches] == _numbers(whole, 2)
        seen = Counter(number for loader in train for batch in _numbers(loader, 2) for number in batch)
        assert seen.total() == train[0].samples == count // BATCH * BATCH
        assert set(seen.values()) == {1}
        validated = Counter(number for loader in val for batch in _numbers(loader, 0) for number in batch)
        assert validated == Counter(range(count // 3))
        assert {loader.samples for loader in val} == {count // 3}


@pytest.mark.parametrize(("share", "kept"), [(0.25, 25), (0.07, 7), (1.0, 101)])
def test_a_share_is_the_same_images_in_every_epoch_and_world(
    numbered: Callable[[int], Path], share: float, kept: int
) -> None:
    """Ranks of 3 that start an epoch in its middle go on with the batches of one; validation leaves nothing out."""
    folder = numbered(101)
    with ExitStack() as opened:
        ranks = [opened.enter_context(closing(_open(folder, "train", rank, 3, share))) for rank in range(3)]
        whole = opened.enter_context(closing(_open(folder, "train", 0, 1, share)))
        assert {rank.steps for rank in ranks} == {whole.steps} == {kept // BATCH}
        seen: set[int] = set()
        for epoch in range(12):
            batches = _numbers(whole, epoch)
            parts = zip(*(_numbers(loader, epoch, whole.steps // 2) for loader in ranks), strict=True)
            assert [list(chain(*part)) for part in parts] == batches[whole.steps // 2 :]
            flat = list(chain(*batches))
            assert len(set(flat)) == len(flat) == whole.samples
            seen |= set(flat)
        assert len(seen) == kept
        val = opened.enter_context(closing(_open(folder, "val", 0, 1, share)))
        assert sorted(chain(*_numbers(val, 0))) == list(range(33))


def test_another_world_goes_on_where_one_stopped(numbered: Callable[[int], Path]) -> None:
    """2 -> 1 -> 3 workers within one epoch of 14 steps."""
    folder, seen = numbered(101), []
    for world, start, stop in ((2, 0, 5), (1, 5, 9), (3, 9, 14)):
        with ExitStack() as opened:
            ranks = [opened.enter_context(closing(_open(folder, "train", rank, world))) for rank in range(world)]
            parts = zip(*(_numbers(loader, 4, start) for loader in ranks), strict=True)
            seen += [list(chain(*part)) for part in parts][: stop - start]
    with closing(_open(folder, "train", 0, 1)) as whole:
        assert seen == _numbers(whole, 4)
