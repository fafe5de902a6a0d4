import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.packed_files import CIFAR10_CLASSES, FASHION_CLASSES
from pipelines.data.sources import open_source
from pipelines.errors import UserError

RANDOM = np.random.default_rng(0)


def cifar10(folder: Path, each: int = 4) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    files = {}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = RANDOM.integers(0, 256, (each, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
        files[name] = records
    return files


def cifar100(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, count in (("train.bin", 6), ("test.bin", 3)):
        records = RANDOM.integers(0, 100, (count, 3074), np.uint8)
        records[:, 0], records[:, 1] = 7, np.arange(count) + 90
        (folder / name).write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"class{number}" for number in range(100)) + "\n\n")


def idx(folder: Path, ending: str = ".gz", labels: int = 10) -> None:
    folder.mkdir(parents=True)
    for stem, count in (("train", 12), ("t10k", 5)):
        images = struct.pack(">4I", 0x803, count, 6, 7) + RANDOM.integers(0, 256, count * 42, np.uint8).tobytes()
        classes = struct.pack(">2I", 0x801, count) + bytes(index % labels for index in range(count))
        for name, content in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", classes)):
            (folder / (name + ending)).write_bytes(gzip.compress(content) if ending else content)


def test_image_folder(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    source = open_source(root, tmp_path)
    assert (source.name, source.classes, source.kind) == ("pets", ("ant", "bee", "cat"), "folder")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 24, "val": 9}
    sample = source.splits["train"][8]
    assert (sample.label, sample.name) == (1, "train/bee/000.jpeg")
    assert sample.load() == (root / "train/bee/000.jpeg").read_bytes()
    assert [sample.label for sample in source.splits["val"][2:4]] == [0, 1]


def test_test_folder_serves_as_validation_and_name_can_be_given(
    tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "val").rename(root / "test")
    assert open_source(root, tmp_path, name="mine").name == "mine"


def test_images_in_subfolders_of_a_class(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "val" / "ant" / "more").mkdir()
    (root / "val" / "ant" / "000.jpeg").rename(root / "val" / "ant" / "more" / "000.jpeg")
    assert [sample.name for sample in open_source(root, tmp_path).splits["val"]][2] == "val/ant/more/000.jpeg"


def test_incomplete_folders_are_refused(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "val" / "dog").mkdir()
    with pytest.raises(UserError, match="different classes: dog"):
        open_source(root, tmp_path)
    (root / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="dog is empty"):
        open_source(root, tmp_path)
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(UserError, match="neither val/ nor test/"):
        open_source(root, tmp_path)
    (root / "val").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        open_source(root, tmp_path)


def test_nothing_there_and_nothing_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such source: nowhere.* fashion-mnist, cifar10, cifar100"):
        open_source("nowhere", tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"No data set recognised .*notes.txt"):
        open_source(tmp_path, tmp_path)
    with pytest.raises(UserError, match="No data set recognised"):
        open_source(tmp_path / "notes.txt", tmp_path)


def test_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="agmm data fetch fashion-mnist"):
        open_source("fashion-mnist", tmp_path)
    idx(tmp_path / "sources" / "fashion-mnist")
    assert open_source("fashion-mnist", tmp_path).classes == FASHION_CLASSES


@pytest.mark.parametrize("form", ["folder", "above", "archive", "archive inside"])
def test_cifar10_binary(tmp_path: Path, form: str) -> None:
    files = cifar10(tmp_path / "c" / "cifar-10-batches-bin")
    path = {"folder": tmp_path / "c" / "cifar-10-batches-bin", "above": tmp_path / "c"}.get(form)
    if path is None:
        (tmp_path / "a").mkdir()
        archive = tmp_path / "a" / "cifar-10-binary.tar.gz"
        with tarfile.open(archive, "w:gz") as out:
            out.add(tmp_path / "c" / "cifar-10-batches-bin", "cifar-10-batches-bin")
        path = archive if form == "archive" else archive.parent
    source = open_source(path, tmp_path)
    assert (source.classes, source.kind) == (CIFAR10_CLASSES, "cifar10")
    assert (len(source.splits["train"]), len(source.splits["val"])) == (20, 4)
    record, sample = files["data_batch_2.bin"][1], source.splits["train"][5]
    pixels = sample.load()
    assert isinstance(pixels, np.ndarray)
    assert sample.label == record[0]
    assert np.array_equal(pixels, record[1:].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    cifar100(tmp_path / "cifar-100-binary")
    source = open_source(tmp_path / "cifar-100-binary", tmp_path)
    assert len(source.classes) == 100
    assert [sample.label for sample in source.splits["val"]] == [90, 91, 92]


def test_pickled_cifar_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({}))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, folder.name)
    for path in (folder, tmp_path, archive):
        with pytest.raises(UserError, match=r"pickles.*cifar-10-binary\.tar\.gz"):
            open_source(path, tmp_path)


def test_damaged_cifar(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    cifar10(folder)
    content = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"data_batch_3.bin .* no multiple of 3073"):
        open_source(folder, tmp_path)
    (folder / "data_batch_3.bin").write_bytes(b"\x0a" + content[1:])
    with pytest.raises(UserError, match="label 10; allowed are 0 to 9"):
        open_source(folder, tmp_path)
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        open_source(folder, tmp_path)


def test_damaged_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        entry = tarfile.TarInfo("data_batch_1.bin")
        entry.size = 100_000
        out.addfile(entry, io.BytesIO(RANDOM.integers(0, 256, entry.size, np.uint8).tobytes()))
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(buffer.getvalue()[:50_000])
    with pytest.raises(UserError, match="damaged"):
        open_source(path, tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_becomes_three_equal_channels(tmp_path: Path, ending: str) -> None:
    idx(tmp_path / "mnist", ending)
    source = open_source(tmp_path / "mnist", tmp_path)
    assert source.classes == tuple("0123456789")
    pixels = source.splits["train"][3].load()
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (6, 7, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert source.splits["val"][4].label == 4


def test_idx_class_names_of_its_own(tmp_path: Path) -> None:
    idx(tmp_path / "kuzushiji", labels=2)
    (tmp_path / "kuzushiji" / "classes.txt").write_text("o\nki\n")
    assert open_source(tmp_path / "kuzushiji", tmp_path).classes == ("o", "ki")


def test_damaged_idx(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    idx(folder)
    labels, images = folder / "train-labels-idx1-ubyte.gz", folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        open_source(folder, tmp_path)
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(UserError, match="503 bytes of data, its header says 504"):
        open_source(folder, tmp_path)
    images.write_bytes(labels.read_bytes())
    with pytest.raises(UserError, match="0x801, not 0x803"):
        open_source(folder, tmp_path)
    images.write_bytes(whole)
    labels.write_bytes(gzip.compress(struct.pack(">2I", 0x801, 12) + bytes([11] * 12)))
    with pytest.raises(UserError, match="label 11"):
        open_source(folder, tmp_path)
    labels.unlink()
    with pytest.raises(UserError, match="lacks train-labels"):
        open_source(folder, tmp_path)
