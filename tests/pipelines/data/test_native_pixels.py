"""The compiled decoder and resize against OpenCV's and NumPy's; what only a loader does is in test_loaders.py."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.data import native_pixels
from pipelines.data.scaling import reduced_side, shrink

pytestmark = pytest.mark.skipif(bool(native_pixels.why_not()), reason=native_pixels.why_not())

REDUCED = {1: 1, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def noisy(height, width, **options):
    """A JPEG file with something in every block."""
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    out = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", **options)
    return np.frombuffer(out.getvalue(), np.uint8)


def decode_box(file, height, width, times, box):
    top, bottom, left, right = box
    out = np.zeros((bottom - top, right - left, 3), np.uint8)
    address = file.ctypes.data
    code = native_pixels.library().agmm_decode_box(
        address, len(file), height, width, times, top, bottom, left, right, out.ctypes.data
    )
    return code, out


@pytest.mark.parametrize("times", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4", "quality": 95},
        {"progressive": True},
        {"restart_marker_rows": 1},
    ],
    ids=str,
)
def test_a_box_has_the_pixels_of_the_whole_image(times, options):
    rng = np.random.default_rng(times)
    for height, width in ((75, 131), (64, 96), (16, 16), (9, 200), (1, 1)):
        file = noisy(height, width, **options)
        whole = cv2.cvtColor(cv2.imdecode(file, REDUCED[times]), cv2.COLOR_BGR2RGB)
        assert whole.shape[:2] == (reduced_side(height, times), reduced_side(width, times))
        for _ in range(20):
            top, bottom = sorted(rng.choice(whole.shape[0] + 1, 2, replace=False).tolist())
            left, right = sorted(rng.choice(whole.shape[1] + 1, 2, replace=False).tolist())
            code, box = decode_box(file, height, width, times, (top, bottom, left, right))
            assert code == 0
            assert np.array_equal(box, whole[top:bottom, left:right])


def test_damage_and_another_image_are_told():
    file = noisy(64, 64)
    whole = (0, 64, 0, 64)
    assert decode_box(file, 64, 64, 1, whole)[0] == 0
    assert decode_box(file, 64, 65, 1, whole)[0] == 1
    assert decode_box(file[: len(file) // 2].copy(), 64, 64, 1, whole)[0] == 1
    assert decode_box(np.zeros(1000, np.uint8), 64, 64, 1, whole)[0] == 1
    assert decode_box(file[:1].copy(), 64, 64, 1, whole)[0] == 1


def test_shrinking_is_what_numpy_says():
    rng = np.random.default_rng(0)
    for _ in range(100):
        image = rng.integers(0, 256, (*rng.integers(1, 90, 2), 3), np.uint8)
        resolution = int(rng.integers(1, min(image.shape[:2]) + 1))
        height, width = (rng.uniform(resolution, side) for side in image.shape[:2])
        top, left = rng.uniform(0, image.shape[0] - height), rng.uniform(0, image.shape[1] - width)
        out = np.zeros((resolution, resolution, 3), np.uint8)
        native_pixels.library().agmm_shrink(
            image.ctypes.data, *image.shape[:2], top, left, height, width, resolution, out.ctypes.data
        )
        difference = np.abs(out.astype(int) - shrink(image, top, left, height, width, resolution))
        assert difference.max() <= 1
        assert difference.mean() < 0.02
