import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.beton import PAGE, BetonReader, BetonWriter
from pipelines.data.layout import JPG, RAW
from pipelines.errors import UserError


def write(path: Path, images: list[np.ndarray], count: int | None = None) -> None:
    writer = BetonWriter(path, count or len(images))
    for label, image in enumerate(images):
        writer.add(label, RAW, image.shape[0], image.shape[1], image)
    writer.finish()


@pytest.fixture
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (3 + index, 5, 3), np.uint8) for index in range(9)]


def test_what_is_written_is_read(tmp_path: Path, images: list[np.ndarray]) -> None:
    write(tmp_path / "a.beton", images)
    reader = BetonReader(tmp_path / "a.beton")
    assert len(reader) == 9
    assert reader.labels.tolist() == list(range(9))
    assert reader.sizes.tolist() == [[3 + index, 5] for index in range(9)]
    for index, image in enumerate(images):
        assert np.array_equal(reader.stored(index).reshape(image.shape), image)
        assert not reader.is_jpeg(index)


def test_reader_pickles_as_its_path(tmp_path: Path, images: list[np.ndarray]) -> None:
    write(tmp_path / "a.beton", images)
    again = pickle.loads(pickle.dumps(BetonReader(tmp_path / "a.beton")))
    assert np.array_equal(again.stored(3), images[3].ravel())


def test_no_image_crosses_a_page_and_larger_ones_get_larger_pages(tmp_path: Path) -> None:
    half = np.zeros((PAGE // 3 // 1000, 600, 3), np.uint8)
    big = np.ones((2 * PAGE // 3 // 1000, 1100, 3), np.uint8)
    write(tmp_path / "a.beton", [half, half, big, half])
    reader = BetonReader(tmp_path / "a.beton")
    header = np.fromfile(tmp_path / "a.beton", "<u4", count=1, offset=4)
    page = int(header[0])
    assert page == 4 * PAGE
    for entry in reader.allocations:
        assert int(entry["ptr"]) // page == (int(entry["ptr"]) + int(entry["size"]) - 1) // page
    assert np.array_equal(reader.stored(2).reshape(big.shape), big)


def test_fewer_samples_than_announced(tmp_path: Path, images: list[np.ndarray]) -> None:
    write(tmp_path / "a.beton", images, count=20)
    assert len(BetonReader(tmp_path / "a.beton")) == 9


def test_unfinished_file_is_refused(tmp_path: Path, images: list[np.ndarray]) -> None:
    writer = BetonWriter(tmp_path / "a.beton", 1)
    writer.add(0, JPG, 3, 5, b"jpeg")
    writer.close()
    with pytest.raises(UserError, match="not finished"):
        BetonReader(tmp_path / "a.beton")


@pytest.mark.parametrize("keep", [0, 10, 24, 1500, -8])
def test_cut_short_file_is_refused(tmp_path: Path, images: list[np.ndarray], keep: int) -> None:
    path = tmp_path / "a.beton"
    write(path, images)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(UserError, match=r"cut short|not finished"):
        BetonReader(path)


@pytest.mark.parametrize(
    ("offset", "value", "says"), [(0, 9, "version"), (24, 7, "other fields"), (2106, 9, "contradicts")]
)
def test_foreign_file_is_refused(tmp_path: Path, images: list[np.ndarray], offset: int, value: int, says: str) -> None:
    path = tmp_path / "a.beton"
    write(path, images)
    content = bytearray(path.read_bytes())
    content[offset] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        BetonReader(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        BetonReader(tmp_path / "none.beton")


def test_close_after_a_full_disk_is_silent(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path / "a.beton", 1)
    writer.add(0, RAW, 1, 1, np.zeros((1, 1, 3), np.uint8))

    class Full:
        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    writer._file.close()
    writer._file = Full()  # type: ignore[assignment]
    writer.close()
