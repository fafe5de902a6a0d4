"""Event frames on their way to the network: augmentation, order, ranks, resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import AugmentConfig, DataConfig, ModelConfig
from pipelines.data import plan
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.events import Events, FrameRule
from pipelines.data.frames_loader import cut_frames
from pipelines.data.loaders import BatchLoader, Split, check_data, open_loader
from pipelines.data.samples import Sample, Source
from pipelines.errors import UserError
from pipelines.network import normalise

ROLL = AugmentConfig(crop="roll", roll=5)
PAD = AugmentConfig(crop="pad", padding=4)
NONE = AugmentConfig(crop="none", flip=False)

EVENTS = ModelConfig(in_chans=2, time_steps=3)

Opener = Callable[..., BatchLoader]


def random_events(seed: int) -> Events:
    draws = np.random.default_rng(seed).integers(0, (16, 16, 2), (400, 3)).T
    return Events(np.arange(400), draws[0], draws[1], draws[2].astype(bool), (16, 16))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set, named "waves": 11 and 5 samples of 3 frames of 12 x 12."""
    samples = [Sample(number % 2, str(number), partial(random_events, number)) for number in range(16)]
    splits = {"train": samples[:11], "val": samples[11:]}
    source = Source("waves", "test", ("left", "right"), splits, 0, FrameRule(3, 12))
    out = tmp_path_factory.mktemp("waves") / "built"
    build(source, out)
    return out


def config(**changes: Any) -> DataConfig:
    plain = {"dataset": "waves", "resolution": 12, "batch_size": 4, "loader": "auto", "augment": NONE}
    return DataConfig.model_validate(plain | changes)


@pytest.fixture
def opened(recordings: Path) -> Iterator[Opener]:
    made: list[BatchLoader] = []

    def make(split: Split = "train", *, rank: int = 0, world: int = 1, **changes: Any) -> BatchLoader:
        made.append(open_loader(recordings, split, data=config(**changes), seed=3, rank=rank, world=world))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def collected(loader: BatchLoader, epoch: int = 0, start_step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader.epoch(epoch, start_step))
    return torch.cat([frames for frames, _ in batches]), torch.cat([labels for _, labels in batches])


def row(top: int, left: int, flip: int) -> plan.Ids:
    return np.array([top, left, 3, 3, flip])


SMALL = np.arange(1, 10, dtype=np.uint8).reshape(1, 1, 3, 3).repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize(
    ("top", "left", "flip", "wrap", "expected"),
    [
        (0, 0, 0, False, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (0, 0, 1, False, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        (1, 0, 0, True, [[4, 5, 6], [7, 8, 9], [1, 2, 3]]),
        (1, 0, 0, False, [[4, 5, 6], [7, 8, 9], [0, 0, 0]]),
        (-1, 2, 0, True, [[9, 7, 8], [3, 1, 2], [6, 4, 5]]),
        (-1, 2, 0, False, [[0, 0, 0], [3, 0, 0], [6, 0, 0]]),
        (0, -1, 1, False, [[2, 1, 0], [5, 4, 0], [8, 7, 0]]),
        (4, 0, 0, False, [[0, 0, 0]] * 3),
    ],
)
def test_cut_by_hand(top: int, left: int, flip: int, wrap: bool, expected: list[list[int]]) -> None:
    """The same for every time step and polarity."""
    out = np.full_like(SMALL, 77)
    cut_frames(SMALL, row(top, left, flip).astype(np.int32), wrap=wrap, out=out)
    for frame in out.reshape(4, 3, 3):
        assert frame.tolist() == expected


@pytest.mark.parametrize("augment", [ROLL, PAD, NONE])
@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_frames_are_what_the_plan_says(opened: Opener, recordings: Path, augment: AugmentConfig, loader: str) -> None:
    batches = opened(augment=augment, loader=loader)
    assert (batches.backend, batches.steps, batches.samples) == ("numpy", 2, 8)
    frames, labels = collected(batches, epoch=2)
    assert (frames.shape, frames.dtype) == ((8, 3, 2, 12, 12), torch.uint8)
    reader, table = BetonReader(recordings / "train.beton"), plan.new_table(11)
    plan.fill_plan(table, reader.sizes, augment, 12, 3, 2)
    ids = plan.epoch_order(11, 3, 2)[:8]
    assert labels.tolist() == reader.labels[ids].tolist()
    for got, index in zip(frames, ids.tolist(), strict=True):
        expected = np.zeros((3, 2, 12, 12), np.uint8)
        stored = reader.stored(index).reshape(expected.shape)
        cut_frames(stored, table[index], wrap=augment.crop == "roll", out=expected)
        assert np.array_equal(got.numpy(), expected)


def test_roll_keeps_every_event_and_reaches_both_ways(opened: Opener, recordings: Path) -> None:
    assert collected(opened("val"))[0].sum() == 5 * 400
    assert collected(opened(augment=ROLL))[0].sum() == 8 * 400
    table = plan.new_table(4000)
    plan.fill_plan(table, np.full((4000, 2), 12, np.int32), ROLL, 12, 0, 0)
    for column in (plan.TOP, plan.LEFT):
        assert np.unique(table[:, column]).tolist() == list(range(-5, 6))
    assert 0.45 < table[:, plan.FLIP].mean() < 0.55


def test_worlds_threads_and_resume_see_the_same(opened: Opener) -> None:
    whole, labels = collected(opened(augment=ROLL), 1)
    assert torch.equal(collected(opened(augment=ROLL, threads=3), 1)[0], whole)
    assert torch.equal(collected(opened(augment=ROLL), 1, start_step=1)[0], whole[4:])
    ranks = [opened(augment=ROLL, rank=rank, world=3) for rank in range(3)]
    parts = [torch.cat([frames for frames, _ in step]) for step in zip(*(r.epoch(1) for r in ranks), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    loader = opened(augment=ROLL, threads=2)
    next(loader.epoch(0))
    assert torch.equal(collected(loader, 1)[1], labels)
    assert not torch.equal(collected(loader, 2)[0], whole)


def test_a_share_of_frames_is_the_same_in_every_epoch(opened: Opener, recordings: Path) -> None:
    labels = BetonReader(recordings / "train.beton").labels[plan.training_subset(11, 6, 3)]
    loader = opened(share=0.5, batch_size=6)
    first, second = collected(loader, 0), collected(loader, 1)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == sorted(labels.tolist())
    assert {frame.numpy().tobytes() for frame in first[0]} == {frame.numpy().tobytes() for frame in second[0]}
    assert opened("val", share=0.5).samples == 5


def test_validation_sees_every_sample_once(opened: Opener) -> None:
    parts = [collected(opened("val", rank=rank, world=2, augment=ROLL)) for rank in range(2)]
    assert torch.cat([labels for _, labels in parts]).tolist() == [1, 0, 1, 0, 1]
    assert torch.equal(torch.cat([frames for frames, _ in parts]), collected(opened("val"))[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"augment": {"crop": "random_resized"}}, r"crop=random_resized: for images; waves has event frames"),
        ({"augment": {"scale": (0.5, 1.0)}}, r"data\.augment\.scale: for images"),
        ({"augment": {"policy": "randaugment", "cutout": 4}}, r"data\.augment\.policy, data\.augment\.cutout: for im"),
        ({"augment": {"mix": {"mixup": 0.2}}}, r"data\.augment\.mix: for images"),
        ({"crop_ratio": 0.9}, r"data\.crop_ratio: for images"),
        ({"progressive": {"start": 8, "multiple": 4}}, r"data\.progressive: for images"),
        ({"resolution": 48}, r"data\.resolution=48, but the frames are 12 x 12"),
    ],
)
def test_options_for_images_are_refused(recordings: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_data(recordings, config(**changes), EVENTS, world=1)
    with pytest.raises(UserError, match=says):
        open_loader(recordings, "train", data=config(**changes), seed=0)


def test_another_t_is_refused(recordings: Path) -> None:
    other = EVENTS.model_copy(update={"time_steps": 4})
    with pytest.raises(UserError, match=r"of 3 time steps, the network 4\. Set model\.time_steps=3, .*--frames 4"):
        check_data(recordings, config(), other, world=1)
    with pytest.raises(UserError, match="3 time steps"):
        open_loader(recordings, "val", data=config(), seed=0, model=other)


def test_a_network_for_images_is_refused(recordings: Path, square: Path) -> None:
    with pytest.raises(UserError, match=r"model\.in_chans=3 takes .* waves has event frames.*Set model\.in_chans=2"):
        check_data(recordings, config(), ModelConfig(time_steps=3), world=1)
    data = DataConfig(dataset="square", resolution=32, batch_size=4)
    with pytest.raises(UserError, match=r"model\.in_chans=2 takes .* square has RGB images. Set model\.in_chans=3"):
        check_data(square, data, EVENTS, world=1)


def test_asking_for_ffcv_is_answered(recordings: Path) -> None:
    said: list[str] = []
    check_data(recordings, config(loader="ffcv"), EVENTS, world=1, say=said.append)
    assert said == ["event frames are read by NumPy from a memory map, not by FFCV: there is nothing to decode"]


def test_images_do_not_roll(square: Path) -> None:
    data = DataConfig(dataset="square", resolution=32, batch_size=4, augment=ROLL)
    with pytest.raises(UserError, match=r"crop=roll is for event frames"):
        check_data(square, data, ModelConfig(), world=1)
    check_data(square, data.model_copy(update={"augment": PAD}), ModelConfig(), world=1)


def test_frames_become_counts_with_time_first() -> None:
    frames = torch.arange(2 * 3 * 2 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 2, 4, 4)
    x_TBCHW = normalise(frames, config(), torch.device("cpu"))
    assert (x_TBCHW.shape, x_TBCHW.dtype) == ((3, 2, 2, 4, 4), torch.float32)
    assert torch.equal(x_TBCHW[1, 0], frames[0, 1].float())
    assert x_TBCHW.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
