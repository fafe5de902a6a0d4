"""What `agmm bench THEME` measures, a module a theme. A result is rows of `name, ours, peer, ratio, unit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.data.build import build
from pipelines.data.sources import open_source

DATASET = "bench"


def row(name: str, ours: float, unit: str, peer: float | None = None) -> dict[str, Any]:
    """One line of a result. `ratio` is ours by the peer's, where there is a peer."""
    return {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer if peer else None, "unit": unit}


def circumstances() -> dict[str, Any]:
    """What else decides a figure: the cores, and how many processes want them (a mean over the last minute)."""
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0]}


def small_data(root: Path, *, train: int = 48, val: int = 12, size: int = 16, classes: int = 3) -> Path:
    """Build a data set of random images with the product's own generator; returns its folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            path = root / "images" / split / f"class{index % classes}" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    build(open_source(str(root / "images"), root, name=DATASET), root / "built")
    return root / "built"
