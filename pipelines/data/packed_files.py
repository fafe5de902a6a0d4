"""Data sets that come as arrays in a few files: CIFAR-10/100 (binary version), MNIST and Fashion-MNIST (idx)."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from pipelines.data.samples import Sample, Source
from pipelines.errors import UserError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_PIXELS = 32 * 32 * 3
_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR10 = (*_CIFAR10_TRAIN, "test_batch.bin")
_CIFAR100 = ("train.bin", "test.bin", "fine_label_names.txt")
_CIFAR_PICKLED = ({"data_batch_1", "test_batch"}, {"train", "test", "meta"})

_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError)


class ArraySplit(Sequence[Sample]):
    """Images [N, H, W] (grey, repeated to three equal channels) or [N, 3, H, W], with labels [N]."""

    def __init__(self, name: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
        self._name, self._images, self._labels = name, images, labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> ArraySplit: ...

    def __getitem__(self, index: int | slice) -> Sample | ArraySplit:
        if isinstance(index, slice):
            return ArraySplit(self._name, self._images[index], self._labels[index])
        return Sample(int(self._labels[index]), f"{self._name}/{index}", partial(_rgb, self._images[index]))


def _rgb(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    channels = image.transpose(1, 2, 0) if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    return np.ascontiguousarray(channels)


def open_cifar(path: Path, name: str) -> Source | None:
    """CIFAR's binary version, from its folder, a folder above it, or its .tar.gz; None when it is something else.

    Raises UserError for the pickled python version, which would run code of the file's, and for damaged files.
    """
    files = _archived(path) if path.is_file() else _in_folder(path)
    if any(pickled <= set(files) for pickled in _CIFAR_PICKLED):
        raise UserError(
            f"{path} is CIFAR's python version: pickles, which can run code when read, so they are refused. Get the "
            "binary version instead (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or agmm data fetch cifar10)."
        )
    if not set(files) & {*_CIFAR10, *_CIFAR100}:
        return None
    return _cifar10(path, name, files) if set(files) & set(_CIFAR10) else _cifar100(path, name, files)


_Files = dict[str, Path | bytes]


def _in_folder(path: Path) -> _Files:
    """Files by name: of this folder, of the one folder inside that looks like CIFAR, or of the archive inside."""
    for folder in (path, *sorted(path.glob("cifar-10*-batches-*")), *sorted(path.glob("cifar-100*"))):
        files = {entry.name: entry for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else {}
        if set(files) & {*_CIFAR10, *_CIFAR100} or any(pickled <= set(files) for pickled in _CIFAR_PICKLED):
            return dict(files)
    archives = sorted(path.glob("cifar-10*.tar.gz"))
    return _archived(archives[0]) if archives else {}


def _archived(path: Path) -> _Files:
    """Files of a tar archive by base name, in memory: nothing is unpacked to disk. Names only, unless binary CIFAR."""
    if not path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return {}
    files: _Files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                base = member.name.rpartition("/")[2]
                stream = archive.extractfile(member) if member.isfile() else None
                wanted = stream is not None and base.endswith((".bin", ".txt"))
                if member.isfile():
                    files[base] = stream.read() if stream is not None and wanted else b""
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged or no tar archive: {error}. Download it again.") from error
    return files


def _cifar10(path: Path, name: str, files: _Files) -> Source:
    _require(path, files, _CIFAR10)
    parts = [_cifar_records(path, files, part, 1, 10) for part in _CIFAR10_TRAIN]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    splits = {
        "train": ArraySplit("train", images, labels),
        "val": ArraySplit("test", *_cifar_records(path, files, "test_batch.bin", 1, 10)),
    }
    return _source(name, "cifar10", CIFAR10_CLASSES, splits, _PIXELS)


def _cifar100(path: Path, name: str, files: _Files) -> Source:
    _require(path, files, _CIFAR100)
    classes = tuple(_content(path, files, "fine_label_names.txt").decode("utf-8", "replace").split())
    if len(classes) != 100:
        raise UserError(f"fine_label_names.txt of {path} has {len(classes)} names, not 100. Download it again.")
    splits = {
        "train": ArraySplit("train", *_cifar_records(path, files, "train.bin", 2, 100)),
        "val": ArraySplit("test", *_cifar_records(path, files, "test.bin", 2, 100)),
    }
    return _source(name, "cifar100", classes, splits, _PIXELS)


def _require(path: Path, files: _Files, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in files]:
        raise UserError(f"{path} lacks {', '.join(missing)}. CIFAR's binary version has {', '.join(names)}.")


def _content(path: Path, files: _Files, name: str) -> bytes:
    content = files[name]
    try:
        return content if isinstance(content, bytes) else content.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {name} of {path}: {error.strerror}.") from error


def _cifar_records(
    path: Path, files: _Files, name: str, label_bytes: int, classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images [N, 3, 32, 32] and labels [N] of records of label bytes (the fine one last) and planes R, G, B."""
    content = np.frombuffer(_content(path, files, name), np.uint8)
    if len(content) == 0 or len(content) % (label_bytes + _PIXELS):
        raise UserError(
            f"{name} of {path} has {len(content)} bytes, no multiple of {label_bytes + _PIXELS}: cut short or not "
            "CIFAR's binary version. Download it again."
        )
    records = content.reshape(-1, label_bytes + _PIXELS)
    labels = np.ascontiguousarray(records[:, label_bytes - 1])
    _check_labels(f"{name} of {path}", labels, classes)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _check_labels(what: str, labels: npt.NDArray[np.uint8], classes: int) -> None:
    if labels.size and int(labels.max()) >= classes:
        raise UserError(f"{what} has label {int(labels.max())}; allowed are 0 to {classes - 1}. Download it again.")


def open_idx(path: Path, name: str) -> Source | None:
    """MNIST's four idx files, plain or .gz; None when they are not there.

    Class names: the lines of the folder's classes.txt; without one, Fashion-MNIST's when the name says so, else digits.
    """
    if not path.is_dir() or _idx_file(path, "train-images", 3) is None:
        return None
    listed = path / "classes.txt"
    default = FASHION_CLASSES if "fashion" in name.lower() else tuple(str(digit) for digit in range(10))
    classes = tuple(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else default
    splits = {"train": _idx_split(path, "train", classes), "val": _idx_split(path, "t10k", classes)}
    return _source(name, "idx", classes, splits, 28 * 28 * 3)


def _idx_file(path: Path, stem: str, rank: int) -> Path | None:
    for joint in ("-", "."):
        for ending in ("", ".gz"):
            candidate = path / f"{stem}{joint}idx{rank}-ubyte{ending}"
            if candidate.is_file():
                return candidate
    return None


def _idx_split(path: Path, stem: str, classes: tuple[str, ...]) -> ArraySplit:
    images_file, labels_file = _idx_file(path, f"{stem}-images", 3), _idx_file(path, f"{stem}-labels", 1)
    if images_file is None or labels_file is None:
        kind = "images-idx3" if images_file is None else "labels-idx1"
        raise UserError(f"{path} lacks {stem}-{kind}-ubyte[.gz]. All four idx files are needed.")
    images, labels = _idx_array(images_file, _IDX_IMAGES), _idx_array(labels_file, _IDX_LABELS)
    if len(images) != len(labels):
        raise UserError(f"{images_file} has {len(images)} images, {labels_file} has {len(labels)} labels.")
    _check_labels(str(labels_file), labels, len(classes))
    return ArraySplit("train" if stem == "train" else "test", images, labels)


def _idx_array(path: Path, magic: int) -> npt.NDArray[np.uint8]:
    """The array of an idx file: magic number, big-endian sizes, bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}. Download it again.") from error
    rank = magic & 0xFF
    head = np.frombuffer(content[: 4 + 4 * rank], ">u4") if len(content) >= 4 + 4 * rank else np.zeros(1, ">u4")
    if int(head[0]) != magic:
        raise UserError(f"{path} is no idx file of this kind: it starts with {int(head[0]):#x}, not {magic:#x}.")
    shape = [int(size) for size in head[1:]]
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    expected = int(np.prod(shape, dtype=object))
    if expected == 0 or body.size != expected:
        raise UserError(f"{path} has {body.size} bytes of data, its header says {expected}. Download it again.")
    return body.reshape(shape)


def _source(
    name: str, kind: str, classes: tuple[str, ...], splits: dict[str, ArraySplit], bytes_per_image: int
) -> Source:
    return Source(name, kind, classes, splits, bytes_per_image * sum(len(split) for split in splits.values()))
