"""Augmentation through the loaders: any world, any start, either backend gives a sample the same pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config import DataConfig, MixConfig, ModelConfig
from pipelines.data import loaders, plan
from pipelines.data.build import build
from pipelines.data.loaders import BatchLoader, check_data, open_loader
from pipelines.data.mixing import draw_mixes
from pipelines.data.sources import open_source
from pipelines.errors import UserError

PIXELS = {"policy": "autoaugment_cifar10", "cutout": 9}
GROWING = {"start": 16, "from_epoch": 0, "to_epoch": 2, "multiple": 8}
Opener = Callable[..., BatchLoader]


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Path:
    """A built data set, named "raw": 21 training images of 32 x 32, stored as pixels: decoders cannot differ."""
    root = tmp_path_factory.mktemp("raw")
    build(open_source(image_folder(root / "raw", train=7, val=3, kind="PNG", size=(32, 32)), root), root / "built")
    return root / "built"


@pytest.fixture
def opened(raw: Path) -> Iterator[Opener]:
    made: list[BatchLoader] = []

    def make(split: loaders.Split = "train", *, rank: int = 0, world: int = 1, **data: Any) -> BatchLoader:
        tree = {"dataset": "raw", "resolution": 32, "batch_size": 6, "loader": "torch"} | data
        made.append(open_loader(raw, split, data=DataConfig.model_validate(tree), seed=3, rank=rank, world=world))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def images(loader: BatchLoader, epoch: int = 1, start_step: int = 0) -> torch.Tensor:
    return torch.cat([batch for batch, _ in loader.epoch(epoch, start_step)])


@pytest.mark.parametrize("world", [2, 3])
def test_any_world_sees_the_same_pixels(opened: Opener, world: int) -> None:
    settings = {"augment": {"crop": "random_resized"} | PIXELS, "progressive": GROWING}
    whole, ranks = opened(**settings), [opened(rank=rank, world=world, **settings) for rank in range(world)]
    plain = opened(**settings | {"augment": {"crop": "random_resized"}})
    assert not torch.equal(images(plain), images(whole))
    for (expected, labels), *parts in zip(whole.epoch(1), *(loader.epoch(1) for loader in ranks), strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), expected)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_an_epoch_begun_late_is_the_tail_of_the_whole(opened: Opener) -> None:
    loader = opened(augment={"crop": "pad"} | PIXELS)
    whole = images(loader)
    next(loader.epoch(1))
    assert torch.equal(images(loader, start_step=1), whole[6:])
    assert torch.equal(images(opened(augment={"crop": "pad"} | PIXELS), start_step=2), whole[12:])


def test_validation_is_left_alone(opened: Opener) -> None:
    plain, val = opened("val"), opened("val", augment=PIXELS, progressive=GROWING)
    assert torch.equal(images(val, 0), images(plain, 0))


@pytest.mark.skipif(loaders.why_absent() is not None, reason="FFCV does not import here")
class TestFfcv:
    def test_pixels_are_torchs(self, opened: Opener) -> None:
        settings = {"augment": {"crop": "pad"} | PIXELS}
        fast, plain = opened(loader="ffcv", **settings), opened(**settings)
        assert fast.backend == "ffcv"
        assert torch.equal(images(fast), images(plain))

    def test_the_resolution_grows_without_a_new_loader(self, opened: Opener) -> None:
        """From 16 to 32 and back: a smaller image leaves nothing in a larger one."""
        settings = {"augment": {"crop": "random_resized"}, "progressive": GROWING}
        fast, plain = opened(loader="ffcv", **settings), opened(**settings)
        for epoch, size in ((0, 16), (1, 24), (2, 32), (0, 16)):
            ours, expected = images(fast, epoch), images(plain, epoch)
            assert ours.shape == expected.shape == (18, 3, size, size)
            assert ours.stride() == expected.stride()
            assert (ours.float() - expected.float()).abs().mean() < 0.6


def test_pairs_are_checked_before_workers_start(raw: Path, opened: Opener) -> None:
    data = DataConfig.model_validate(
        {"dataset": "raw", "batch_size": 6, "loader": "torch", "augment": {"mix": {"mixup": 0.2}}}
    )
    check_data(raw, data, ModelConfig(), world=3)
    with pytest.raises(UserError, match=r"even share .* got 6 for 2 workers.*multiple of 4 \(4 or 8\)"):
        check_data(raw, data, ModelConfig(), world=2)
    assert opened().mixing(0, 0) is None
    mix = opened(augment={"mix": {"mixup": 0.2}}).mixing(0, 2)
    assert mix is not None
    assert (mix.share.shape, mix.box.shape) == ((3,), (3, 4))


def test_a_share_is_augmented_and_mixed_as_all_are(opened: Opener) -> None:
    """An image of a share has the draws of its place among all 21; order and pairs are the share's."""
    augment = {"mix": {"mixup": 0.2}} | PIXELS
    part, ids = opened(augment=augment, share=0.58), plan.training_subset(21, 12, 3)[plan.epoch_order(12, 3, 1)]
    everything, order = opened(augment=PIXELS, batch_size=1), plan.epoch_order(21, 3, 1).tolist()
    assert torch.equal(images(part), images(everything)[[order.index(one) for one in ids.tolist()]])
    mix, expected = part.mixing(1, 1), draw_mixes(ids[6:], 21, MixConfig(mixup=0.2), 32, 3, 1)
    assert mix is not None
    assert torch.equal(mix.share, expected.share)
