"""Finds out what kind of data set lies at a path.

`open_source` recognises a folder of images (see `folders.py`), CIFAR's binary files and idx files (`packed_files.py`),
and the event recordings of DVS-Gesture and CIFAR10-DVS (`dvs.py`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.data.events import SplitBy
from pipelines.data.samples import Source
from pipelines.errors import UserError
from pipelines.names import NAME


def source_home(home: Path) -> Path:
    """Where fetched originals live: <home>/sources/<name>."""
    return Path(home) / "sources"


def open_source(path_or_name: str | Path, home: Path, *, name: str | None = None) -> Source:
    """The source at a path, or a known one by the name it was fetched under; `name` overrides the folder's.

    Raises UserError when nothing is there, nothing is recognised, or what is there is incomplete or damaged.
    """
    from pipelines.data import dvs, folders, packed_files

    path = _locate(path_or_name, home)
    called = name or _stem(path)
    if not re.fullmatch(NAME, called):
        raise UserError(f"{called!r} cannot name a data set: letters, digits, dots, dashes, underscores. Give --name.")
    kinds = (
        packed_files.open_cifar,
        packed_files.open_idx,
        dvs.open_gesture,
        dvs.open_cifar10_dvs,
        folders.open_folder,
    )
    for recognise in kinds:
        source = recognise(path, called)
        if source is not None:
            return source
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise UserError(
        f"No data set recognised at {path} (it has: {inside or 'nothing'}). Allowed: a folder with train/ and val/ (or "
        "test/), each with a folder of images per class; CIFAR-10 or CIFAR-100 in the binary version, unpacked or as "
        "its .tar.gz; MNIST-like train-images-idx3-ubyte[.gz] and its three companions; DVS-Gesture (the folder with "
        "trials_to_train.txt); CIFAR10-DVS (a folder per class with its .aedat files)."
    )


def choose_frames(source: Source, steps: int | None, size: int | None, by: SplitBy | None) -> Source:
    """The source with what is given of a frame rule; None keeps its own. Raises UserError for a source of images."""
    given = {"steps": steps, "size": size, "by": by}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not chosen:
        return source
    if source.frames is None:
        raise UserError(
            f"--frames, --frame-size and --frame-by are for recordings of events; {source.name} has images. Leave them "
            "out, or give the images as --events-from."
        )
    return replace(source, frames=replace(source.frames, **chosen))


def _locate(path_or_name: str | Path, home: Path) -> Path:
    from pipelines.data.fetch import KNOWN

    try:
        path = Path(path_or_name).expanduser()
        if path.exists():
            return path.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, a user who is not there, a loop of links
        raise UserError(f"{path_or_name} is no path of this machine: {error}.") from error
    known = str(path_or_name)
    if known in KNOWN:
        fetched = source_home(home) / known
        if fetched.is_dir():
            return fetched.resolve()
        raise UserError(f"{known} is not on this machine yet. Run: agmm data fetch {known}")
    raise UserError(f"No such source: {path_or_name}. Give an existing path, or one of: {', '.join(KNOWN)}.")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
