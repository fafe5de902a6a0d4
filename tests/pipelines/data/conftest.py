"""Small data sets of smooth, noiseless pictures: JPEG decoders then agree to a level or two."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.build import build
from pipelines.data.sources import open_source

CLASSES = ("ant", "bee", "cat")


def _picture(number: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return _picture


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    def encode(number: int, height: int, width: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
        out = io.BytesIO()
        _picture(number, height, width, mode).save(out, kind, **({"quality": 92} if kind == "JPEG" else {}))
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def image_folder(encoded: Callable[..., bytes]) -> Callable[..., Path]:
    def make(root: Path, train: int = 8, val: int = 3, kind: str = "JPEG", size: tuple[int, int] | None = None) -> Path:
        number = 0
        for split, each in (("train", train), ("val", val)):
            for name in CLASSES:
                folder = root / split / name
                folder.mkdir(parents=True)
                for index in range(each):
                    height, width = size or (40 + 3 * (number % 7), 36 + 5 * (number % 5))
                    (folder / f"{index:03}.{kind.lower()}").write_bytes(encoded(number, height, width, kind))
                    number += 1
        return root

    return make


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Path:
    """A built data set, named "mixed": JPEG files of many sizes, and pixels (from PNG) as the first of a class."""
    root = tmp_path_factory.mktemp("mixed")
    source = image_folder(root / "mixed", train=8, val=3)
    for name in CLASSES:
        first = source / "train" / name / "000.jpeg"
        Image.open(first).save(first.with_suffix(".png"))
        first.unlink()
    build(open_source(source, root), root / "built")
    return root / "built"


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Path:
    """A built data set, named "square": 7 and 5 images a class, 32 x 32."""
    root = tmp_path_factory.mktemp("square")
    build(open_source(image_folder(root / "square", train=7, val=5, size=(32, 32)), root), root / "built")
    return root / "built"
