"""ImageFolder: train/<class>/<image> and val/<class>/<image> (or test/)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import overload

from pipelines.data.samples import Sample, Source
from pipelines.errors import UserError

# What desktops and archives leave behind; names with a leading dot are ignored as well.
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class FolderSplit(Sequence[Sample]):
    """The files of one split in order of class and path; samples are made when asked for."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> FolderSplit: ...

    def __getitem__(self, index: int | slice) -> Sample | FolderSplit:
        if isinstance(index, slice):
            return FolderSplit(self._root, self._files[index])
        name, label = self._files[index]
        return Sample(label, f"{self._root.name}/{name}", partial(_read, self._root / name))


def _size(path: Path) -> int:
    # An estimate: a file that cannot be looked at is found, and named, when it is read.
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _read(path: Path) -> bytes:
    return path.read_bytes()


def open_folder(path: Path, name: str) -> Source | None:
    """The folder as a source; None when it has no train/. Raises UserError when it is incomplete."""
    if not (path / "train").is_dir():
        return None
    roots = {"train": path / "train", "val": _validation_root(path)}
    classes = _classes(roots["train"])
    if (other := _classes(roots["val"])) != classes:
        odd = sorted(set(classes) ^ set(other))
        raise UserError(
            f"{roots['train']} and {roots['val']} have different classes: {', '.join(odd[:8])} "
            f"{'are' if len(odd) > 1 else 'is'} in only one of them. Both need the same class folders."
        )
    listed = {split: _files(root, classes) for split, root in roots.items()}
    size = sum(_size(root / file) for split, root in roots.items() for file, _ in listed[split])
    splits = {split: FolderSplit(root, listed[split]) for split, root in roots.items()}
    return Source(name, "folder", classes, splits, size)


def _validation_root(path: Path) -> Path:
    for candidate in ("val", "validation", "test"):
        if (path / candidate).is_dir():
            return path / candidate
    raise UserError(f"{path} has train/ but neither val/ nor test/. Add one, with the same class folders as train/.")


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_clutter(entry.name)))
    if not classes:
        raise UserError(f"{root} has no class folders. It needs one folder of images per class.")
    return classes


def _files(root: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        found = sorted(_walk(root / name))
        if not found:
            raise UserError(f"Class folder {root / name} is empty. Add images or remove the class from every split.")
        files += [(Path(name, file).as_posix(), label) for file in found]
    return files


def _walk(folder: Path) -> list[str]:
    """Files below a class folder, relative to it, without clutter."""
    found = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_clutter(name)]
        below = Path(at).relative_to(folder)
        found += [(below / name).as_posix() for name in names if not _is_clutter(name)]
    return found


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER
