import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import AugmentConfig, DataConfig
from pipelines.data import loaders, plan
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.loaders import BatchLoader, open_loader
from pipelines.data.manifest import STAMP
from pipelines.data.sources import open_source
from pipelines.data.torch_loader import cut, decode
from pipelines.errors import ServiceError, UserError

RANDOM = AugmentConfig(crop="random_resized", scale=(0.3, 1.0))
PAD = AugmentConfig(crop="pad", padding=4)
NONE = AugmentConfig(crop="none")

needs_ffcv = pytest.mark.skipif(loaders.why_absent() is not None, reason="FFCV does not import here")

Opener = Callable[..., BatchLoader]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """`open_loader` with the tests' settings; what it opened is closed."""
    made: list[BatchLoader] = []

    def make(
        folder: Path,
        split: loaders.Split = "train",
        *,
        augment: AugmentConfig = NONE,
        loader: str = "torch",
        dataset: str = "mixed",
        batch: int = 5,
        threads: int = 1,
        resolution: int = 32,
        share: float = 1.0,
        decode: str = "scaled",
        progressive: dict[str, int] | None = None,
        **more: Any,
    ) -> BatchLoader:
        data = DataConfig.model_validate(
            {"dataset": dataset, "resolution": resolution, "batch_size": batch, "loader": loader, "threads": threads}
            | {
                "augment": augment,
                "crop_ratio": 0.9,
                "share": share,
                "decode": decode,
                "progressive": progressive or {},
            }
        )
        made.append(open_loader(folder, split, data=data, seed=3, **more))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def collected(loader: BatchLoader, epoch: int = 0, start_step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of an epoch; batches are kept while later ones arrive."""
    batches = list(loader.epoch(epoch, start_step))
    if not batches:
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_batches_have_the_promised_form(opened: Opener, mixed: Path) -> None:
    loader = opened(mixed, augment=RANDOM)
    assert (loader.steps, loader.samples, loader.local_samples, loader.backend) == (4, 20, 20, "torch")
    for images, labels in loader.epoch(0):
        assert (images.shape, images.dtype) == ((5, 3, 32, 32), torch.uint8)
        assert (labels.shape, labels.dtype) == ((5,), torch.int64)


@pytest.mark.parametrize("augment", [RANDOM, NONE])
def test_images_are_what_the_plan_says(opened: Opener, mixed: Path, augment: AugmentConfig) -> None:
    images, labels = collected(opened(mixed, augment=augment), epoch=2)
    reader = BetonReader(mixed / "train.beton")
    table = plan.new_table(24)
    plan.fill_plan(table, reader.sizes, augment, 32, 3, 2)
    ids = plan.epoch_order(24, 3, 2)[:20]
    assert labels.tolist() == reader.labels[ids].tolist()
    for image, index in zip(images, ids, strict=True):
        expected = cut(decode(reader, int(index)), table[index], 32)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_an_image_of_a_share_looks_as_it_does_among_all(opened: Opener, mixed: Path) -> None:
    images, _ = collected(opened(mixed, augment=RANDOM, share=0.5), epoch=2)
    reader, table = BetonReader(mixed / "train.beton"), plan.new_table(24)
    plan.fill_plan(table, reader.sizes, RANDOM, 32, 3, 2)
    ids = plan.training_subset(24, 12, 3)[plan.epoch_order(12, 3, 2)[:10]]
    for image, index in zip(images, ids, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), cut(decode(reader, int(index)), table[index], 32))


def test_epochs_differ_and_repeat(opened: Opener, mixed: Path) -> None:
    loader = opened(mixed, augment=RANDOM)
    first, second, again = collected(loader, 0), collected(loader, 1), collected(loader, 0)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])


def test_worker_processes_give_the_same_bytes(opened: Opener, mixed: Path) -> None:
    """They stay between epochs, and an epoch that was left early leaves nothing in the next."""
    one, two = opened(mixed, augment=RANDOM), opened(mixed, augment=RANDOM, threads=2)
    assert torch.equal(collected(one, 0)[0], collected(two, 0)[0])
    next(two.epoch(1))
    assert torch.equal(collected(one, 2)[0], collected(two, 2)[0])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch", [5, 6])
def test_any_world_sees_the_same_global_batches(opened: Opener, mixed: Path, world: int, batch: int) -> None:
    whole = opened(mixed, augment=RANDOM, batch=batch)
    ranks = [opened(mixed, augment=RANDOM, batch=batch, rank=rank, world=world) for rank in range(world)]
    assert {loader.steps for loader in ranks} == {whole.steps}
    assert sum(loader.local_samples for loader in ranks) == whole.samples
    for expected, *parts in zip(whole.epoch(1), *(loader.epoch(1) for loader in ranks), strict=True):
        assert torch.equal(torch.cat([images for images, _ in parts]), expected[0])
        assert torch.equal(torch.cat([labels for _, labels in parts]), expected[1])


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 4), (3, 7), (4, 4), (12, 12)])
def test_validation_is_exact_at_any_world(opened: Opener, mixed: Path, world: int, batch: int) -> None:
    ranks = [opened(mixed, "val", batch=batch, rank=rank, world=world) for rank in range(world)]
    parts = [collected(loader) for loader in ranks]
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [loader.local_samples for loader in ranks] == [len(labels) for _, labels in parts]
    assert [loader.steps for loader in ranks] == [len(list(loader.epoch(0))) for loader in ranks]
    assert {loader.samples for loader in ranks} == {9}


def test_global_generators_are_left_alone(opened: Opener, mixed: Path) -> None:
    def states() -> tuple[object, ...]:
        numpy_state = np.random.get_state(legacy=False)["state"]["key"].tolist()
        return torch.get_rng_state().tolist(), numpy_state, random.getstate()

    before = states()
    for loader in ("torch", "auto"):
        collected(opened(mixed, augment=RANDOM, loader=loader))
    assert states() == before


def test_mistakes(opened: Opener, mixed: Path) -> None:
    with pytest.raises(UserError, match=r"24 training images do not fill one batch"):
        opened(mixed, batch=25)
    with pytest.raises(
        UserError, match=r"data\.share=0\.18 of 24 .* is 4, which do not fill .* of 5\. .* to 0\.2084 or"
    ):
        opened(mixed, share=0.18)
    assert opened(mixed, share=0.2084).steps == 1
    assert opened(mixed, "val", share=0.18).samples == 9
    with pytest.raises(UserError, match=r"less than 6 workers"):
        opened(mixed, batch=5, world=6)
    with pytest.raises(UserError, match="crop=pad needs"):
        opened(mixed, augment=PAD)
    with pytest.raises(UserError, match="'mixed', not 'other'"):
        opened(mixed, dataset="other")
    with pytest.raises(ValueError, match="start_step"):
        opened(mixed).epoch(0, 5)
    with pytest.raises(ValueError, match="rank"):
        opened(mixed, rank=2, world=2)


def test_without_ffcv(opened: Opener, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "why_absent", lambda: "ImportError: libopencv_core.so.406")
    with pytest.raises(UserError, match=r"libopencv_core\.so\.406.*libturbojpeg0-dev.*\.\[ffcv\].*data\.loader=torch"):
        opened(mixed, loader="ffcv")
    said: list[str] = []
    data = DataConfig(dataset="mixed", resolution=32, batch_size=4)
    assert open_loader(mixed, "val", data=data, seed=0, say=said.append).backend == "torch"
    (line,) = said
    assert line.startswith("FFCV does not import (ImportError: libopencv_core.so.406): loading through torch")
    assert ".[ffcv]" in line


def damaged(folder: Path, to: Path, damage: str) -> int:
    """A copy in which one JPEG file changed after the check; returns which."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(STAMP))
    reader = BetonReader(to / "train.beton")
    index = next(index for index in range(len(reader)) if reader.is_jpeg(index))
    start, size = int(reader.allocations["ptr"][index]), int(reader.allocations["size"][index])
    with (to / "train.beton").open("r+b") as file:
        file.seek(start + (0 if damage == "head" else size // 2))
        file.write(bytes(size - size // 2))
    return index


@pytest.mark.parametrize("damage", ["head", "half"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("ffcv", marks=needs_ffcv)])
def test_an_image_that_rotted_on_disk_is_named(
    opened: Opener, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, backend: str
) -> None:
    index = damaged(mixed, tmp_path / "bad", damage)
    monkeypatch.setattr(loaders, "ensure_verified", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=rf"Image {index} of .* no longer decodes.*agmm data verify"):
        collected(opened(tmp_path / "bad", batch=24, loader=backend))


@needs_ffcv
class TestFfcv:
    """Each loader compiles for a second or more: tests share what they can."""

    @pytest.mark.parametrize("augment", [RANDOM, NONE])
    def test_ffcv_gives_torchs_images(self, opened: Opener, mixed: Path, augment: AugmentConfig) -> None:
        """Same order, labels, crops and flips; JPEG decoders may differ by a little, pixels not at all."""
        fast, plain = opened(mixed, augment=augment, loader="ffcv"), opened(mixed, augment=augment)
        assert fast.backend == "ffcv"
        reader = BetonReader(mixed / "train.beton")
        for epoch in (0, 1):
            (images, labels), (expected, expected_labels) = collected(fast, epoch), collected(plain, epoch)
            assert torch.equal(labels, expected_labels)
            assert (images.stride(), images.dtype) == (expected.stride(), torch.uint8)
            difference = (images.float() - expected.float()).abs().mean(dim=(1, 2, 3))
            assert difference.max() < 2
            raw = [not reader.is_jpeg(int(index)) for index in plan.epoch_order(24, 3, epoch)[:20]]
            assert difference[raw].max() < 0.6
        late = collected(fast, 1, start_step=3)
        assert torch.equal(late[0], images[15:])
        assert collected(fast, 1, start_step=4)[1].numel() == 0

    @pytest.mark.parametrize("decode", ["scaled", "full"])
    def test_ffcv_decodes_smaller_like_torch(self, opened: Opener, mixed: Path, decode: str) -> None:
        """Boxes of 8 pixels and more a side: decoded whole, and at 1/2 and 1/4."""
        both = [
            opened(mixed, augment=RANDOM, loader=loader, resolution=8, decode=decode) for loader in ("ffcv", "torch")
        ]
        for epoch in (0, 1):
            images, expected = (collected(loader, epoch)[0] for loader in both)
            assert (images.float() - expected.float()).abs().mean(dim=(1, 2, 3)).max() < 3

    def test_it_compiles_once_and_works_ahead(self, opened: Opener, mixed: Path) -> None:
        """Not again for another epoch, plan or resolution; while a batch is trained on, three more are made."""
        from numba.core.event import install_recorder

        ramp = {"start": 16, "from_epoch": 0, "to_epoch": 2, "multiple": 8}
        loader = opened(mixed, augment=RANDOM, loader="ffcv", batch=2, progressive=ramp)
        with install_recorder("numba:compile") as compiled:
            assert collected(loader, 0)[0].shape[-1] == 16
        assert compiled.buffer
        codes = loader._engine._decoder.codes
        reader = BetonReader(mixed / "train.beton")
        soon = [index for index in plan.epoch_order(24, 3, 1)[: 4 * 2].tolist() if reader.is_jpeg(index)]
        codes[soon] = 9
        with install_recorder("numba:compile") as compiled:
            next(loader.epoch(1))
            deadline = time.monotonic() + 20
            while (codes[soon] == 9).any() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not (codes[soon] == 9).any()
            assert collected(loader, 2)[0].shape[-1] == 32
        assert not compiled.buffer

    def test_ffcv_takes_torchs_share(self, opened: Opener, mixed: Path) -> None:
        fast, plain = (opened(mixed, augment=RANDOM, loader=loader, share=0.5) for loader in ("ffcv", "torch"))
        assert (fast.steps, fast.samples) == (plain.steps, plain.samples) == (2, 10)
        (images, labels), (expected, expected_labels) = collected(fast, 1), collected(plain, 1)
        assert torch.equal(labels, expected_labels)
        assert (images.float() - expected.float()).abs().mean(dim=(1, 2, 3)).max() < 2

    def test_ffcv_pads_like_torch(self, opened: Opener, square: Path) -> None:
        fast = opened(square, augment=PAD, loader="ffcv", dataset="square")
        plain = opened(square, augment=PAD, dataset="square")
        images, expected = collected(fast)[0], collected(plain)[0]
        assert (images.float() - expected.float()).abs().mean() < 2
        black = expected.sum(dim=1) == 0
        assert black.any()
        assert (images.sum(dim=1)[black] == 0).float().mean() > 0.95

    def test_threads_and_worlds_do_not_change_bytes(self, opened: Opener, mixed: Path) -> None:
        whole = collected(opened(mixed, augment=RANDOM, loader="ffcv"), 1)
        assert torch.equal(collected(opened(mixed, augment=RANDOM, loader="ffcv", threads=2), 1)[0], whole[0])
        parts = [opened(mixed, augment=RANDOM, loader="ffcv", rank=rank, world=2) for rank in range(2)]
        joined = [torch.cat([a[0], b[0]]) for a, b in zip(parts[0].epoch(1), parts[1].epoch(1), strict=True)]
        assert torch.equal(torch.cat(joined), whole[0])

    def test_validation(self, opened: Opener, mixed: Path) -> None:
        fast, plain = opened(mixed, "val", loader="ffcv", batch=4), opened(mixed, "val", batch=4)
        assert [len(labels) for _, labels in fast.epoch(0)] == [4, 4, 1]
        (images, labels), (expected, expected_labels) = collected(fast), collected(plain)
        assert torch.equal(labels, expected_labels)
        assert (images.float() - expected.float()).abs().mean() < 2

    def test_leaving_early_leaks_no_thread_and_torch_keeps_its_own(self, opened: Opener, mixed: Path) -> None:
        threads = torch.get_num_threads()
        loader = opened(mixed, augment=RANDOM, loader="ffcv", batch=1)
        expected = collected(loader, 0)[0]
        before = threading.active_count()
        for _ in range(5):
            next(loader.epoch(1))
        assert torch.equal(collected(loader, 0)[0], expected)
        assert threading.active_count() == before
        assert torch.get_num_threads() == threads

    def test_an_exception_in_the_pipeline_is_raised(
        self, opened: Opener, mixed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines.data import ffcv_loader

        def fail(self: object, number: int, *_: object) -> None:
            raise RuntimeError("out of scratch")

        monkeypatch.setattr(ffcv_loader._Epoch, "run_pipeline", fail)
        with pytest.raises(ServiceError, match=r"pipeline stopped.*out of scratch"):
            collected(opened(mixed, loader="ffcv"))

    def test_a_decoders_remark_is_no_error(
        self, opened: Opener, tmp_path: Path, image_folder: Callable[..., Path]
    ) -> None:
        """libjpeg-turbo answers -1 to stray bytes that it skips; the image is whole."""
        root = image_folder(tmp_path / "remark", train=1, val=1)
        victim = root / "train/bee/000.jpeg"
        content = victim.read_bytes()
        victim.write_bytes(content[:20] + b"\0\0" + content[20:])
        build(open_source(root, tmp_path), tmp_path / "built")
        loader = opened(tmp_path / "built", loader="ffcv", dataset="remark", batch=3)
        assert sorted(collected(loader)[1].tolist()) == [0, 1, 2]

    def test_stock_ffcv_reads_our_file(self, mixed: Path, square: Path) -> None:
        from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption

        reader = BetonReader(square / "train.beton")
        stock = Loader(
            str(square / "train.beton"),
            batch_size=21,
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            seed=0,
            pipelines={"image": [CenterCropRGBImageDecoder((32, 32), 1.0)]},
        )
        threads = torch.get_num_threads()
        iterator = iter(stock)
        images, labels = next(iterator)
        iterator.close()
        assert torch.get_num_threads() == threads
        assert labels.ravel().tolist() == reader.labels.tolist()
        for index, image in enumerate(images):
            assert np.abs(image.astype(float) - decode(reader, index)).mean() < 2
