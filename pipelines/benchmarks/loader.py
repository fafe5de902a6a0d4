"""Loading with random resized crops: this loader, stock FFCV on the same file, and torchvision on the JPEG files.

See `race` for how. Each contender makes an epoch of uint8 batches, shuffled, cropped and mirrored, in one process on
one core; FFCV's consumer and pipeline share it. Nothing is converted to float, which is the same work for all.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agmm import compat as compat  # torchvision beside a CPU-only torch: before torchvision
from pipelines.benchmarks import DATASET, circumstances
from pipelines.benchmarks.race import Contender, machine, paired, pinned, race
from pipelines.config import AugmentConfig, DataConfig
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.loaders import BatchLoader, open_loader, why_absent
from pipelines.data.manifest import beton_path
from pipelines.data.samples import Reencoding
from pipelines.data.smaller import smaller
from pipelines.data.sources import open_source
from pipelines.errors import UserError
from pipelines.progress import Progress

RESOLUTIONS = (160, 224)
BATCH = 64
SMALLER = Reencoding(short_side=256, quality=90)
# What a file of the original ImageNet has, about: 110 KB for 500 x 375.
_HEIGHT, _WIDTH, _QUALITY, _ROUGHNESS = 375, 500, 90, 30.0
_PATTERNS = ("*.jpg", "*.jpeg", "*.JPG", "*.JPEG")


@dataclass(frozen=True)
class _Files:
    """The same images as JPEG files (ImageFolder) and built; `kind` names them in the table."""

    kind: str
    images: Path
    built: Path


def bench(
    images: Path | None, rounds: int, count: int, resolutions: Sequence[int] = RESOLUTIONS, batch: int = BATCH
) -> dict[str, Any]:
    """Rows of every comparison, what was loaded, the hardware and the versions. Rates are images/s on one core.

    images: a folder of JPEG files, of which `count` are taken at even distances; None makes synthetic ones. Raises
    UserError where FFCV is missing, or a folder has not so many.
    """
    if why := why_absent():
        raise UserError(f"The loader is measured against FFCV, which does not import here: {why}.")
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch, pinned(1):
        files = _prepare(Path(scratch), images, count)
        rows, total = list[dict[str, Any]](), rounds * len(resolutions)
        with Progress(total, "measure", "round") as progress:
            for resolution in resolutions:
                rows += _measure(files, resolution, count, batch, rounds, progress)
        about = {each.kind: _about(each) for each in files}
    source = (
        "synthetic, noise with the spectrum of photographs" if images is None else f"{count} files of {images.name}"
    )
    peers = {name: version(name) for name in ("ffcv", "torchvision", "pillow")}
    return {"rows": rows, **circumstances(), "rounds": rounds, "images": source, **about, **machine(), **peers}


def _prepare(scratch: Path, images: Path | None, count: int) -> list[_Files]:
    """Full-size files and re-encoded ones, each as JPEG files and built."""
    full = scratch / "full" / "train"
    (full / "all").mkdir(parents=True)
    for number, content in enumerate(_synthetic(count) if images is None else _chosen(images, count)):
        (full / "all" / f"{number:06}.jpeg").write_bytes(content)
    # Validation is not measured, but no data set is without.
    (scratch / "full" / "val").symlink_to(full)
    source = open_source(scratch / "full", scratch, name=DATASET)
    build(source, scratch / "full-built", threads=1)
    build(smaller(source, SMALLER), scratch / "small-built", threads=1)
    small = scratch / "small" / "all"
    small.mkdir(parents=True)
    reader = BetonReader(beton_path(scratch / "small-built", "train"))
    for index in range(len(reader)):
        (small / f"{index:06}.jpeg").write_bytes(reader.stored(index).tobytes())
    kind = f"short side {SMALLER.short_side}"
    return [_Files("full size", full, scratch / "full-built"), _Files(kind, small.parent, scratch / "small-built")]


def _chosen(images: Path, count: int) -> Iterator[bytes]:
    paths = sorted(itertools.chain.from_iterable(images.rglob(pattern) for pattern in _PATTERNS))
    if len(paths) < count:
        raise UserError(f"{images} has {len(paths)} JPEG files, fewer than {count}. Lower --count.")
    return (paths[number * len(paths) // count].read_bytes() for number in range(count))


def _synthetic(count: int) -> Iterator[bytes]:
    """Pictures with as much detail at every scale as photographs have: amplitudes fall with the frequency."""
    rng = np.random.default_rng(0)
    distance = np.hypot(np.fft.fftfreq(_HEIGHT)[:, None], np.fft.rfftfreq(_WIDTH)[None])
    fall = 1 / np.maximum(distance, 1 / _WIDTH)
    for _ in range(count):
        noise = np.fft.rfft2(rng.standard_normal((3, _HEIGHT, _WIDTH)))
        grey, red, green = np.fft.irfft2(noise * fall, (_HEIGHT, _WIDTH))
        # Colours of neighbours differ less than their brightness.
        planes = [grey + 0.3 * colour for colour in (red, green, -red)]
        pixels = 128 + _ROUGHNESS * np.stack(planes, axis=-1) / grey.std()
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=_QUALITY)
        yield out.getvalue()


def _about(files: _Files) -> str:
    reader = BetonReader(beton_path(files.built, "train"))
    height, width = np.median(reader.sizes, axis=0)
    return f"{height:.0f} x {width:.0f}, {reader.allocations['size'].mean() / 1e3:.0f} KB"


def _measure(
    files: Sequence[_Files], resolution: int, count: int, batch: int, rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """All contenders at one resolution, each on full-size files and on re-encoded ones."""
    loaders = [_open(each, resolution, batch) for each in files]
    try:
        ours = [Contender("ours", _epochs(loader)) for loader in loaders]
        stock = [Contender("stock FFCV", _stock(each, resolution, batch)) for each in files]
        plain = [Contender("torchvision", _torchvision(each, resolution, batch)) for each in files]
        race([*ours, *stock, *plain], rounds, progress)
    finally:
        for loader in loaders:
            loader.close()
    # This loader leaves the incomplete last batch out.
    seen = float(loaders[0].samples)
    rows = [
        paired(f"{each.kind}, crop {resolution}: ours by {peer.name}", mine, peer, "images/s", seen, count)
        for each, mine, *peers in zip(files, ours, stock, plain, strict=True)
        for peer in peers
    ]
    name = f"{files[1].kind}, crop {resolution}: ours by torchvision on full size"
    return [*rows, paired(name, ours[1], plain[0], "images/s", seen, count)]


def _open(files: _Files, resolution: int, batch: int) -> BatchLoader:
    augment = AugmentConfig(crop="random_resized")
    data = DataConfig(dataset=DATASET, resolution=resolution, batch_size=batch, loader="ffcv", augment=augment)
    return open_loader(files.built, "train", data=data, seed=0)


def _epochs(loader: BatchLoader) -> Callable[[], object]:
    numbers = itertools.count()
    return lambda: _exhaust(loader.epoch(next(numbers)))


def _stock(files: _Files, resolution: int, batch: int) -> Callable[[], object]:
    """FFCV as its authors load ImageNet."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    image = [RandomResizedCropRGBImageDecoder((resolution, resolution)), RandomHorizontalFlip()]
    loader = Loader(
        str(beton_path(files.built, "train")),
        batch_size=batch,
        num_workers=1,
        order=OrderOption.RANDOM,
        seed=0,
        os_cache=True,
        drop_last=False,
        pipelines={"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
    )
    return lambda: _exhaust(loader)


def _torchvision(files: _Files, resolution: int, batch: int) -> Callable[[], object]:
    """ImageFolder through Pillow; without worker processes, which would only wait for the one core."""
    compat.import_torchvision()
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    crop, flip = transforms.RandomResizedCrop(resolution), transforms.RandomHorizontalFlip()
    folder = ImageFolder(str(files.images), transforms.Compose([crop, flip, transforms.PILToTensor()]))
    loader: DataLoader[Any] = DataLoader(folder, batch_size=batch, shuffle=True)
    return lambda: _exhaust(loader)


def _exhaust(batches: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FFCV's and Pillow's own
        for _ in batches:
            pass
