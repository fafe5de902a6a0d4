import io

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.data.beton import BetonReader
from pipelines.data.manifest import load_manifest
from pipelines.data.torch_loader import decode


@pytest.fixture
def pets(tmp_path, image_folder, encoded):
    folder = image_folder(tmp_path / "pets", train=2, val=1)  # short sides of 36 to 52
    (folder / "train/ant/000.jpeg").write_bytes(encoded(50, 60, 121))
    (folder / "train/bee/000.jpeg").write_bytes(encoded(51, 90, 45, "PNG"))
    (folder / "train/cat/000.jpeg").write_bytes(encoded(52, 20, 300))
    return folder


def _build(pets, out, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "build", str(pets), "--out", str(out), *words])
    return end.value.code or 0


def test_large_images_become_small_jpeg_files_and_the_manifest_says_so(pets, tmp_path, picture):
    assert _build(pets, tmp_path / "a", "--short-side", "30", "--quality", "80") == 0
    assert _build(pets, tmp_path / "b", "--short-side", "30", "--quality", "80") == 0
    assert (tmp_path / "a/train.beton").read_bytes() == (tmp_path / "b/train.beton").read_bytes()
    manifest = load_manifest(tmp_path / "a")
    assert manifest.reencoded is not None
    assert (manifest.reencoded.short_side, manifest.reencoded.quality) == (30, 80)
    reader = BetonReader(tmp_path / "a/train.beton")
    assert [reader.size_of(index) for index in (0, 2, 4)] == [(30, 60), (60, 30), (20, 300)]
    assert all(reader.is_jpeg(index) for index in range(6))
    assert reader.stored(4).tobytes() == (pets / "train/cat/000.jpeg").read_bytes()
    expected = np.asarray(picture(50, 60, 121).resize((60, 30), Image.Resampling.BICUBIC), float)
    assert np.abs(decode(reader, 0) - expected).mean() < 5
    tables = [Image.open(io.BytesIO(reader.stored(index).tobytes())).quantization for index in (0, 2, 4)]
    assert tables[0] == tables[1] != tables[2]


def test_nothing_is_said_where_nothing_was_done(pets, tmp_path):
    assert _build(pets, tmp_path / "a") == 0
    assert load_manifest(tmp_path / "a").reencoded is None
    assert "reencoded" not in (tmp_path / "a/manifest.json").read_text()


def test_broken_images_are_still_named(pets, tmp_path, capsys):
    (pets / "train/ant/000.jpeg").write_bytes((pets / "train/ant/000.jpeg").read_bytes()[:400])
    assert _build(pets, tmp_path / "a", "--short-side", "30") == 2
    assert "train/ant/000.jpeg" in capsys.readouterr().err


def test_a_quality_of_nothing_is_refused(pets, tmp_path, capsys):
    assert _build(pets, tmp_path / "a", "--quality", "80") == 2
    assert "--short-side" in capsys.readouterr().err
