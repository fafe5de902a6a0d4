import errno
import io
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data import build as module
from pipelines.data.beton import BetonReader, BetonWriter
from pipelines.data.build import build
from pipelines.data.images import BrokenImage, prepare, strict_decoding
from pipelines.data.manifest import MANIFEST, load_manifest
from pipelines.data.samples import Sample, Source
from pipelines.data.sources import open_source
from pipelines.errors import ServiceError, UserError


@pytest.fixture
def pets(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    return image_folder(tmp_path / "pets", train=2, val=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(".") or entry.name == "out")


def test_two_builds_are_the_same_bytes_whatever_the_threads(pets: Path, tmp_path: Path) -> None:
    first = build(open_source(pets, tmp_path), tmp_path / "a", threads=1)
    second = build(open_source(pets, tmp_path), str(tmp_path / "b"), threads=4)
    assert first == second == load_manifest(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    betons = {"train.beton", "val.beton"}
    assert set(contents(tmp_path / "a")) == betons | {f"{name}.chunks" for name in betons} | {MANIFEST}


def test_rgb_jpeg_files_are_stored_byte_for_byte(pets: Path, tmp_path: Path) -> None:
    build(open_source(pets, tmp_path), tmp_path / "out")
    reader = BetonReader(tmp_path / "out" / "train.beton")
    assert reader.stored(2).tobytes() == (pets / "train/bee/000.jpeg").read_bytes()
    assert reader.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_manifest_says_what_is_in_it(pets: Path, tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    (pets / "train/ant/000.jpeg").write_bytes(encoded(1, 30, 90, "JPEG", "L"))
    (pets / "train/ant/001.jpeg").write_bytes(encoded(1, 20, 10, "JPEG", "CMYK"))
    (pets / "train/bee/000.jpeg").write_bytes(encoded(1, 20, 10, "PNG", "P"))
    said: list[str] = []
    manifest = build(open_source(pets, tmp_path), tmp_path / "out", name="other", say=said.append)
    entry = manifest.splits["train"]
    assert (manifest.name, manifest.classes, manifest.source_kind) == ("other", ("ant", "bee", "cat"), "folder")
    assert (entry.count, entry.count_by_class) == (6, (2, 2, 2))
    assert entry.converted == {"CMYK": 1, "L": 1, "P": 1}
    assert entry.smallest == (20, 10)
    assert entry.largest[1] == 90
    assert "1 converted from L" in said[0]
    reader = BetonReader(tmp_path / "out" / "train.beton")
    assert [reader.is_jpeg(index) for index in range(3)] == [True, True, False]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_converted_jpeg_looks_the_same(
    picture: Callable[..., Image.Image], encoded: Callable[..., bytes], mode: str
) -> None:
    prepared = prepare(encoded(3, 48, 64, "JPEG", mode))
    assert isinstance(prepared.data, bytes)
    stored = prepare(prepared.data)
    assert (stored.data, stored.converted) == (prepared.data, None)
    expected = np.asarray(picture(3, 48, 64, mode).convert("RGB"), float)
    got = np.asarray(Image.open(io.BytesIO(prepared.data)), float)
    assert np.abs(got - expected).mean() < 3


def test_other_formats_are_stored_as_pixels(picture: Callable[..., Image.Image], encoded: Callable[..., bytes]) -> None:
    prepared = prepare(encoded(3, 9, 7, "PNG", "RGBA"))
    assert prepared.converted == "RGBA"
    assert np.array_equal(np.asarray(prepared.data), np.asarray(picture(3, 9, 7)))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(prepare((tmp_path / "a.png").read_bytes()).data)[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_truncated_image_is_found(encoded: Callable[..., bytes], kind: str, keep: float) -> None:
    content = encoded(5, 120, 130, kind)
    with strict_decoding(), pytest.raises(BrokenImage):
        prepare(content[: int(len(content) * keep)])


def test_decompression_bomb_is_an_error(encoded: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(5, 60, 60, "PNG")
    for limit in (3000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with strict_decoding(), pytest.raises(BrokenImage, match="decompression bomb"):
            prepare(content)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "unreadable"])
def test_a_broken_file_is_named(pets: Path, tmp_path: Path, damage: str) -> None:
    victim = pets / "train/bee/001.jpeg"
    content = victim.read_bytes()
    victim.unlink()
    if damage == "unreadable":
        victim.symlink_to(pets / "nowhere")
    else:
        victim = victim if damage == "truncated" else victim.with_suffix(".txt")
        victim.write_bytes({"truncated": content[: len(content) // 2], "text": b"labels", "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"train/bee/{victim.name} of pets is not a whole image: .*--on-error skip"):
        build(open_source(pets, tmp_path), tmp_path / "out")
    assert leftovers(tmp_path) == []
    manifest = build(open_source(pets, tmp_path), tmp_path / "out", on_error="skip")
    assert manifest == build(open_source(pets, tmp_path), tmp_path / "again", on_error="skip")
    assert list(manifest.splits["train"].skipped) == [f"train/bee/{victim.name}"]
    assert manifest.splits["train"].count_by_class == (2, 1, 2)
    assert BetonReader(tmp_path / "out" / "train.beton").labels.tolist() == [0, 0, 1, 2, 2]


def test_a_class_without_a_whole_image_is_refused(pets: Path, tmp_path: Path) -> None:
    (pets / "val/cat/000.jpeg").write_bytes(b"no")
    with pytest.raises(UserError, match="val of pets has no usable image of: cat"):
        build(open_source(pets, tmp_path), tmp_path / "out", on_error="skip")
    assert leftovers(tmp_path) == []


def test_existing_folder_and_overwrite(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(open_source(pets, tmp_path), out, name="first")
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        build(open_source(pets, tmp_path), out)
    build(open_source(pets, tmp_path), out, name="second", overwrite=True)
    assert load_manifest(out).name == "second"
    assert leftovers(tmp_path) == ["out"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        build(open_source(pets, tmp_path), out, overwrite=True)
    assert (out / "thesis.txt").exists()


def test_a_failed_overwrite_keeps_the_old_data_set(pets: Path, tmp_path: Path) -> None:
    build(open_source(pets, tmp_path), tmp_path / "out", name="first")
    (pets / "train/ant/000.jpeg").write_bytes(b"no")
    with pytest.raises(UserError):
        build(open_source(pets, tmp_path), tmp_path / "out", overwrite=True)
    assert load_manifest(tmp_path / "out").name == "first"
    assert leftovers(tmp_path) == ["out"]


def test_address_that_is_no_folder(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/x is not a folder"):
        build(open_source(pets, tmp_path), "s3://bucket/x")


@pytest.mark.parametrize("step", ["add", "finish"])
def test_full_disk_leaves_nothing(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BetonWriter, step, full)
    with pytest.raises(ServiceError, match="the disk is full"):
        build(open_source(pets, tmp_path), tmp_path / "out")
    assert leftovers(tmp_path) == []
    assert threading.active_count() == 1 or not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_too_little_space_is_said_first(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="GB free; the data set needs"):
        build(open_source(pets, tmp_path), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_interrupt_leaves_nothing(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(open_source(pets, tmp_path), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_array_source(tmp_path: Path) -> None:
    pixels = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    samples = [Sample(label, f"s/{label}", partial(pixels.__getitem__, label)) for label in range(2)]
    manifest = build(Source("tiny", "test", ("a", "b"), {"train": samples, "val": samples}, 100), tmp_path / "out")
    reader = BetonReader(tmp_path / "out" / "val.beton")
    assert np.array_equal(reader.stored(1).reshape(5, 4, 3), pixels[1])
    assert manifest.splits["val"].content_digest == manifest.splits["train"].content_digest
