import cv2
import numpy as np
import pytest

from pipelines.data.scaling import reduced_side, reduction, shrink


@pytest.mark.parametrize(
    ("box", "resolution", "most", "times"),
    [
        ((224, 224), 224, 8, 1),
        ((447, 900), 224, 8, 1),
        ((448, 448), 224, 8, 2),
        ((900, 448), 224, 8, 2),
        ((896, 896), 224, 8, 4),
        ((10_000, 10_000), 224, 8, 8),
        ((10_000, 10_000), 224, 1, 1),
        ((100, 100), 224, 8, 1),
    ],
)
def test_the_reduction_leaves_enough_for_the_output(box, resolution, most, times):
    assert reduction(*box, resolution, most) == times


def test_any_reduced_box_is_inside_and_large_enough():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        side, resolution = int(rng.integers(1, 3000)), int(rng.integers(1, 300))
        length = int(rng.integers(1, side + 1))
        times = reduction(length, length, resolution)
        assert side / times <= reduced_side(side, times) < side / times + 1
        assert length / times >= min(resolution, length)


def test_shrinking_on_paper():
    image = np.repeat(np.array([[0, 60, 120, 180]], np.uint8)[..., None], 3, axis=2).repeat(4, axis=0)
    assert shrink(image, 0, 0, 4, 4, 2)[..., 0].tolist() == [[30, 150]] * 2
    assert shrink(image, 0.25, 0.5, 2, 3, 2)[..., 0].tolist() == [[40, 140]] * 2  # (0 / 2 + 60) / 1.5 and so on
    assert shrink(image, 0, 0, 4, 4, 4)[..., 0].tolist() == image[..., 0].tolist()


def test_between_whole_pixels_it_is_opencvs_area():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for top, left, height, width in ((0, 0, 50, 70), (3, 5, 40, 31), (1, 2, 29, 29)):
        expected = cv2.resize(image[top : top + height, left : left + width], (29, 29), interpolation=cv2.INTER_AREA)
        difference = np.abs(shrink(image, top, left, height, width, 29).astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.05
