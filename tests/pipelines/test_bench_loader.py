"""That the benchmark of loading runs on files of the user's and on its own; its figures are not tested."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmarks import loader
from pipelines.data.loaders import why_absent
from pipelines.errors import UserError

needs_ffcv = pytest.mark.skipif(why_absent() is not None, reason="FFCV does not import here")


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "photographs" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photographs"


@needs_ffcv
def test_every_contender_is_timed(photographs):
    result = loader.bench(photographs, 4, 4, resolutions=(32,), batch=2)
    json.dumps(result)
    assert [row["name"] for row in result["rows"]] == [
        "full size, crop 32: ours by stock FFCV",
        "full size, crop 32: ours by torchvision",
        "short side 256, crop 32: ours by stock FFCV",
        "short side 256, crop 32: ours by torchvision",
        "short side 256, crop 32: ours by torchvision on full size",
    ]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in result["rows"])
    assert (result["full size"][:9], result["short side 256"][:9]) == ("300 x 400", "256 x 341")
    assert result["images"] == "4 files of photographs"


@needs_ffcv
def test_too_few_files_are_told(photographs):
    with pytest.raises(UserError, match="6 JPEG files, fewer than 7"):
        loader.bench(photographs, 4, 7)


def test_synthetic_pictures_weigh_what_photographs_do():
    first, second = loader._synthetic(2)
    assert first != second
    assert 60_000 < len(first) < 160_000
