import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import AugmentConfig
from pipelines.data import plan
from pipelines.errors import UserError

RANDOM = AugmentConfig(crop="random_resized")


def sizes_of(count: int, low: int = 20, high: int = 90) -> plan.Sizes:
    return np.random.default_rng(count).integers(low, high, (count, 2)).astype(np.int32)


def filled(
    count: int, augment: AugmentConfig, seed: int = 1, epoch: int = 0, sizes: plan.Sizes | None = None
) -> plan.Table:
    table = plan.new_table(count)
    plan.fill_plan(table, sizes_of(count) if sizes is None else sizes, augment, 32, seed, epoch)
    return table


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    first = plan.epoch_order(1000, 3, 0)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, plan.epoch_order(1000, 3, 0))
    assert not np.array_equal(first, plan.epoch_order(1000, 3, 1))
    assert not np.array_equal(first, plan.epoch_order(1000, 4, 0))


def test_order_and_augmentation_have_golden_values() -> None:
    """A change here changes what every stored run would see on resume."""
    assert plan.epoch_order(8, 0, 0).tolist() == GOLDEN_ORDER
    assert filled(3, RANDOM, sizes=np.full((3, 2), 64, np.int32)).tolist() == GOLDEN_ROWS


def test_a_subset_is_a_function_of_the_seed_and_lies_in_larger_ones() -> None:
    small, large = plan.training_subset(1000, 250, 3), plan.training_subset(1000, 500, 3)
    assert len(set(small.tolist())) == 250
    assert set(small.tolist()) < set(large.tolist()) < set(range(1000))
    assert not np.array_equal(small, plan.training_subset(1000, 250, 4))
    # a thousand files sorted by class into ten classes: 25 of each, give or take
    assert np.bincount(small // 100, minlength=10).min() > 10
    assert plan.training_subset(1000, 1000, 3).tolist() == list(range(1000))
    assert plan.training_subset(12, 5, 0).tolist() == GOLDEN_SUBSET


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 9))
def test_rank_slices_partition_a_batch(batch: int, world: int) -> None:
    parts = [np.arange(batch)[plan.rank_slice(batch, rank, world)] for rank in range(world)]
    expected = np.array_split(np.arange(batch), world)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(parts, expected, strict=True))


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 9))
def test_validation_sees_every_sample_once(count: int, world: int) -> None:
    seen = [index for rank in range(world) for index in range(count)[plan.validation_slice(count, rank, world)]]
    assert seen == list(range(count))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_any_world_sees_the_same_global_batches(count: int, batch: int, world: int, epoch: int) -> None:
    whole = plan.training_ids(count, batch, 5, epoch, 0, 1)
    parts = [plan.training_ids(count, batch, 5, epoch, rank, world) for rank in range(world)]
    assert whole.shape == (count // batch, batch)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_a_row_depends_on_seed_epoch_and_id_alone() -> None:
    sizes = sizes_of(plan._CHUNK + 50)
    long, short = filled(len(sizes), RANDOM, sizes=sizes), filled(40, RANDOM, sizes=sizes[:40])
    assert np.array_equal(long[:40], short)
    assert not np.array_equal(short, filled(40, RANDOM, epoch=1, sizes=sizes[:40]))
    assert not np.array_equal(short, filled(40, RANDOM, seed=2, sizes=sizes[:40]))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 50))
def test_random_resized_boxes_lie_inside(height: int, width: int, seed: int) -> None:
    table = filled(20, RANDOM, seed=seed, sizes=np.tile(np.array([[height, width]], np.int32), (20, 1)))
    top, left, box_height, box_width, flip = table.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height > 0).all()
    assert (box_width > 0).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    assert set(flip.tolist()) <= {0, 1}


def torchvision_box(height: int, width: int, augment: AugmentConfig, draws: list[float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision, its draws given: areas and ratios in turn, then the position."""
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for attempt in range(10):
        area = height * width * (augment.scale[0] + (augment.scale[1] - augment.scale[0]) * draws[2 * attempt])
        ratio = math.exp(low + (high - low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    shape = width / height
    w = round(height * augment.ratio[1]) if shape > augment.ratio[1] else width
    h = round(width / augment.ratio[0]) if shape < augment.ratio[0] else height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("augment", [RANDOM, AugmentConfig(crop="random_resized", scale=(0.7, 1.0), ratio=(1.2, 1.3))])
def test_random_resized_is_torchvisions(augment: AugmentConfig) -> None:
    sizes = sizes_of(500, 8, 300)
    draws = plan.generator_of(1, 0, plan._AUGMENT).random((500, plan._DRAWS)).tolist()
    expected = [torchvision_box(int(h), int(w), augment, row) for (h, w), row in zip(sizes, draws, strict=True)]
    assert [tuple(row) for row in filled(500, augment, sizes=sizes)[:, :4].tolist()] == expected


def test_flips_are_fair() -> None:
    assert abs(filled(20_000, RANDOM)[:, plan.FLIP].mean() - 0.5) < 0.02


@pytest.mark.parametrize(("size", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_random_resized_falls_back_to_the_centre(size: tuple[int, int], box: tuple[int, ...]) -> None:
    """No box of 90 % of such an area has an allowed ratio."""
    augment = AugmentConfig(crop="random_resized", scale=(0.9, 1.0))
    assert filled(1, augment, sizes=np.array([size], np.int32))[0, :4].tolist() == list(box)


def test_pad_reaches_beyond_the_image_by_the_padding() -> None:
    table = filled(5000, AugmentConfig(crop="pad", padding=3), sizes=np.full((5000, 2), 32, np.int32))
    assert sorted(set(table[:, 0].tolist())) == list(range(-3, 4))
    assert sorted(set(table[:, 1].tolist())) == list(range(-3, 4))
    assert (table[:, 2:4] == 32).all()


def test_pad_refuses_images_of_another_size() -> None:
    with pytest.raises(UserError, match=r"32 x 32 pixels .* 20 x"):
        filled(50, AugmentConfig(crop="pad"))


def test_none_and_evaluation_take_the_centre() -> None:
    sizes = np.array([[40, 60], [61, 40], [32, 32]], np.int32)
    table = filled(3, AugmentConfig(crop="none", flip=False), sizes=sizes)
    assert table.tolist() == [[0, 10, 40, 40, 0], [10, 0, 40, 40, 0], [0, 0, 32, 32, 0]]
    plan.fill_evaluation_plan(table, sizes, 0.875)
    assert table.tolist() == [[2, 12, 35, 35, 0], [13, 2, 35, 35, 0], [2, 2, 28, 28, 0]]


def test_no_flips_when_not_asked_for() -> None:
    assert not filled(500, AugmentConfig(crop="random_resized", flip=False))[:, plan.FLIP].any()


GOLDEN_ORDER = [5, 0, 6, 1, 7, 2, 4, 3]
GOLDEN_ROWS = [[12, 11, 32, 42, 0], [5, 15, 47, 48, 0], [29, 8, 33, 29, 0]]
GOLDEN_SUBSET = [3, 6, 8, 9, 11]
