"""The loss landscape around a model: a grid of evaluations, kept in a folder so that a cut one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from agmm.landscape import moved, random_directions
from agmm.loop import evaluate, means
from pipelines.checkpoints.checkpoint import model_tensors
from pipelines.data.loaders import open_loader
from pipelines.data.manifest import ensure_verified
from pipelines.data.staging import data_folder
from pipelines.errors import ServiceError, UserError
from pipelines.network import normalise
from pipelines.progress import Progress, Say
from pipelines.registry import Model, load_model
from pipelines.report import figures

_MOST_POINTS, _LONGEST = 501, 1e6  # a quarter of a million evaluations; a million times the weights
_GRID, _PICTURE, _LOCK = "landscape.npz", "landscape.png", "landscape.lock"
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Grid:
    """Which points are evaluated, and on how many images.

    Args:
        points: along each axis, odd so that the network itself is one of them.
        span: the axes go from -span to span, in norms of the weights.
        images: so many of the validation split, at equal distances.
        seed: of the two directions.

    """

    points: int = 21
    span: float = 1.0
    images: int = 1000
    seed: int = 0

    @property
    def axis(self) -> NDArray[np.float64]:
        """Distances along either direction, `[points]`; the middle one is exactly 0."""
        half = self.points // 2
        return np.arange(-half, half + 1) / half * self.span


def landscape(
    uri: str, data_uri: str | None, grid: Grid, folder: Path, tracking: str, say: Say = lambda _: None
) -> dict[str, Any]:
    """Evaluate what is missing of the grid, and write `landscape.npz` and `landscape.png` into `folder`.

    The network is in evaluation mode, with the running statistics of its checkpoint. The .npz holds `axis` [P], `loss`
    and `top1` [P, P] (rows: first direction), `done` [P, P] and `settings` (JSON).

    Raises:
        UserError: where the grid, the model or the data are not what they should be, or where the folder belongs to
            another landscape, or to another process at this moment.
        ServiceError: where a service does not answer, or the disk is full.

    """
    _check(grid)
    model = load_model(uri, tracking)
    data = model.card.data
    place = data_folder(data_uri or data.uri, data.dataset, say)
    manifest = ensure_verified(place, expect_name=data.dataset, expect_classes=model.card.model.num_classes, say=say)
    images = min(grid.images, manifest.splits["val"].count)
    settings = {
        "points": grid.points,
        "span": grid.span,
        "seed": grid.seed,
        "images": images,
        "weights_sha256": _digest(model),
        "data_digest": manifest.splits["val"].content_digest,
    }
    with _claimed(folder):
        surface = _Surface.open(folder / _GRID, grid.axis, settings)
        if not surface.done.all():
            _fill(surface, model, _spread_images(place, model, images, say), grid.seed, say)
        _draw(surface, folder / _PICTURE)
    return _summary(surface, folder) | {"model": uri, "images": images}


def _check(grid: Grid) -> None:
    if grid.points < 3 or grid.points % 2 == 0:
        raise UserError(
            f"--points must be odd and at least 3, got {grid.points}: the network itself is the middle one."
        )
    if grid.points > _MOST_POINTS:
        raise UserError(f"--points must be at most {_MOST_POINTS}, got {grid.points}: each axis has so many.")
    if not 0 < grid.span <= _LONGEST or grid.images < 1:
        raise UserError(
            f"--span must be above 0 and at most {_LONGEST:g}, --images above 0; got {grid.span} and {grid.images}."
        )
    if not 0 <= grid.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 - 1, got {grid.seed}.")


class _Surface:
    """The grid's results so far, in one file that is replaced as a whole."""

    def __init__(self, path: Path, axis: NDArray[np.float64], settings: dict[str, Any]) -> None:
        self.path, self.axis, self.settings = path, axis, settings
        self.loss, self.top1 = (np.full((len(axis), len(axis)), np.nan) for _ in range(2))
        self.done = np.zeros((len(axis), len(axis)), dtype=bool)

    @classmethod
    def open(cls, path: Path, axis: NDArray[np.float64], settings: dict[str, Any]) -> _Surface:
        """What the file holds, or an empty grid. Raises UserError for a file of other settings, or of another kind."""
        surface = cls(path, axis, settings)
        if not path.exists():
            return surface
        try:
            with path.open("rb") as file, np.lib.npyio.NpzFile(file) as stored:
                before = dict(json.loads(str(stored["settings"])))
                grids = [stored[name] for name in ("loss", "top1", "done")]
        except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile) as error:
            raise UserError(f"{path} is not a landscape of this program: {error}. Give another --out.") from error
        changed = [
            f"{key}: {before.get(key)} -> {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            raise UserError(f"{path.parent} holds another landscape ({', '.join(changed)}). Give another --out.")
        if any(part.shape != surface.done.shape for part in grids):
            raise UserError(f"{path} is damaged: its grids are not {len(axis)} x {len(axis)}. Give another --out.")
        surface.loss, surface.top1, surface.done = grids
        return surface

    def put(self, point: tuple[int, int], result: dict[str, float]) -> None:
        """Keep the result of a point, on disk too."""
        self.loss[point], self.top1[point], self.done[point] = result["loss"], result["top1"], True
        settings, scratch = np.array(json.dumps(self.settings)), self.path.with_suffix(".part")
        try:
            with scratch.open("wb") as file:
                np.savez(file, axis=self.axis, loss=self.loss, top1=self.top1, done=self.done, settings=settings)
            scratch.replace(self.path)
        except OSError as error:
            raise ServiceError(f"Cannot write {self.path}: {error}. Free space; the points before are kept.") from error


def _draw(surface: _Surface, path: Path) -> None:
    try:
        figures.landscape(surface.axis, surface.loss, surface.settings["images"]).savefig(path, dpi=120)
    except OSError as error:
        raise ServiceError(f"Cannot write {path}: {error}. Free space and run again; all points are kept.") from error


def _fill(surface: _Surface, model: Model, batches: Batches, seed: int, say: Say) -> None:
    directions = random_directions(model.network, seed)
    missing = [(int(row), int(column)) for row, column in np.argwhere(~surface.done)]
    if len(missing) < surface.done.size:
        say(f"{surface.done.size - len(missing)} of {surface.done.size} points were there")
    with Progress(len(missing), "landscape", "point") as progress:
        for row, column in missing:
            with moved(model.network, directions, (surface.axis[row], surface.axis[column])):
                result = means(evaluate(model.network, batches))
            surface.put((row, column), result)
            progress.advance()


def _spread_images(folder: Path, model: Model, count: int, say: Say) -> Batches:
    """`count` validation images at equal distances, normalised, on the network's device.

    A split may be sorted by class, so the first images would be of a few classes only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.network.to(device)
    data, found, seen = model.card.data, [], 0
    loader = open_loader(folder, "val", data=data, seed=0, model=model.card.model, say=say)
    chosen = torch.zeros(loader.samples, dtype=torch.bool)
    chosen[torch.arange(count) * loader.samples // count] = True
    try:
        for images, labels in loader.epoch(0):
            mine = chosen[seen : seen + len(labels)]
            found.append((images[mine], labels[mine]))
            seen += len(labels)
    finally:
        loader.close()
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    batches = zip(images.split(data.batch_size), labels.split(data.batch_size), strict=True)
    return [(normalise(some, data, device), theirs.to(device)) for some, theirs in batches]


def _digest(model: Model) -> str:
    """SHA-256 of all weights and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model_tensors(model.network).items()):
        total.update(name.encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be, for this process."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another process computes the landscape in {folder}. Wait for it, or give another --out."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Give another --out.") from error
    try:
        yield
    finally:
        lock.release()


def _summary(surface: _Surface, folder: Path) -> dict[str, Any]:
    middle = len(surface.axis) // 2
    return {
        "loss": float(surface.loss[middle, middle]),
        "top1": float(surface.top1[middle, middle]),
        "lowest_loss": float(np.nanmin(surface.loss)),
        "highest_loss": float(np.nanmax(surface.loss)),
        "points_not_finite": int(np.count_nonzero(~np.isfinite(surface.loss))),
        "grid": str(folder / _GRID),
        "picture": str(folder / _PICTURE),
    }
