import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.scaling import reduction, shrink
from pipelines.data.sources import open_source
from pipelines.data.torch_loader import cut, decode, planned


def test_cut_on_paper() -> None:
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3) + 1
    out = cut(image, np.array([-1, 1, 2, 2, 0], np.int32), 2)
    assert out.tolist() == [[[0] * 3, [0] * 3], [[4, 5, 6], [0] * 3]]
    out = cut(image, np.array([0, 0, 2, 2, 1], np.int32), 2)
    assert out.tolist() == image[:, ::-1].tolist()
    assert cut(image, np.array([5, 5, 2, 2, 0], np.int32), 2).sum() == 0


def test_ffcv_is_imported_only_when_asked_for(mixed: Path) -> None:
    script = (
        "import sys\n"
        "from pipelines.config import DataConfig\n"
        "from pipelines.data import build, fetch, manifest, sources, loaders\n"
        "data = DataConfig(dataset='mixed', resolution=32, batch_size=4, loader='torch')\n"
        "loaders.open_loader(sys.argv[1], 'val', data=data, seed=0).close()\n"
        "assert not {'ffcv', 'numba'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(mixed)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_planned_image_is_the_box_of_the_reduced_one(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    """Written down with Pillow, which has libjpeg's scaled decoding too."""
    reader = _large(tmp_path, image_folder)
    row = np.array([11, 20, 70, 90, 1], np.int32)  # of 101 x 123: 2.2 times as large as the output
    box = Image.open(io.BytesIO(reader.stored(0).tobytes()))
    box.draft("RGB", (61, 50))
    assert box.size == (62, 51)
    expected = shrink(np.asarray(box), 5.5, 10, 35, 45, 32)[:, ::-1]
    assert np.abs(planned(reader, 0, row, 32).astype(float) - expected).mean() < 1
    assert np.array_equal(planned(reader, 0, row, 32, most=1), cut(decode(reader, 0), row, 32))


def test_an_image_decoded_smaller_looks_like_the_whole_one(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    reader = _large(tmp_path, image_folder)
    for resolution, times in ((40, 2), (20, 4), (10, 8), (3, 8)):
        row = np.array([8, 16, 88, 104, 0], np.int32)
        assert reduction(88, 104, resolution) == times
        small, whole = (planned(reader, 0, row, resolution, most).astype(float) for most in (8, 1))
        assert np.abs(small - whole).mean() < 3


def test_pixels_and_boxes_that_are_small_are_never_reduced(mixed: Path, tmp_path: Path) -> None:
    reader = BetonReader(mixed / "train.beton")
    for index, row in ((0, [0, 0, 36, 36, 0]), (1, [1, 1, 35, 30, 0])):
        row = np.array(row, np.int32)
        assert reader.is_jpeg(index) == (index == 1)
        resolution = 9 if index == 0 else 32
        assert np.array_equal(planned(reader, index, row, resolution), cut(decode(reader, index), row, resolution))


def _large(root: Path, image_folder: Callable[..., Path]) -> BetonReader:
    build(open_source(image_folder(root / "large", train=1, val=1, size=(101, 123)), root), root / "built")
    return BetonReader(root / "built" / "train.beton")
