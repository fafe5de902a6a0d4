import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines.data import manifest as module
from pipelines.data.manifest import MANIFEST, STAMP, ensure_verified, load_manifest, verify
from pipelines.data.seal import sealed
from pipelines.errors import UserError


@pytest.fixture
def folder(square: Path, tmp_path: Path) -> Path:
    shutil.copytree(square, tmp_path / "data", ignore=shutil.ignore_patterns(STAMP))
    return tmp_path / "data"


def edit(folder: Path, **changes: object) -> None:
    """As a builder would have written it, with a checksum that fits."""
    tree = json.loads((folder / MANIFEST).read_text())
    del tree["checksum"]
    (folder / MANIFEST).write_bytes(sealed(tree | changes))


def flip_a_byte(path: Path, offset: int = -100) -> None:
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_whole_data_set(folder: Path) -> None:
    said: list[str] = []
    manifest = verify(folder, said.append)
    assert (manifest.name, len(manifest.digest), len(said)) == ("square", 64, 2)
    assert ensure_verified(folder, expect_name="square", expect_classes=3) == manifest


@pytest.mark.parametrize("older", [1, 2])
def test_manifests_of_older_formats_are_read(folder: Path, older: int) -> None:
    """They have neither a checksum nor chunks."""
    tree = json.loads((folder / MANIFEST).read_text())
    del tree["checksum"]
    for split in tree["splits"].values():
        del split["chunks"]
    (folder / MANIFEST).write_text(json.dumps(tree | {"format": older}))
    for split in ("train", "val"):
        (folder / f"{split}.beton.chunks").unlink()
    assert verify(folder).format == older
    assert ensure_verified(folder).splits["train"].chunks is None


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    """Even where it means the same: a new line at its end, or a digit that nothing else checks."""
    path = folder / MANIFEST
    content = path.read_bytes()
    for changed in (
        content + b"\n",
        content.replace(b"agmm 0", b"agmm 7"),
        content.replace(b'"format": 4', b'"format": 2'),
    ):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"manifest\.json (is damaged, or was edited|is no manifest: checksum)"):
            load_manifest(folder)


def test_a_list_of_chunks_is_checked(folder: Path) -> None:
    flip_a_byte(folder / "val.beton.chunks", 3)
    with pytest.raises(UserError, match=r"val\.beton\.chunks is damaged"):
        verify(folder)
    (folder / "val.beton.chunks").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*val\.beton\.chunks"):
        verify(folder)


def test_another_data_set(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'square', not 'cifar10'.*data\.uri.*data\.dataset=square"):
        load_manifest(folder, expect_name="cifar10")
    with pytest.raises(UserError, match=r"3 classes, not 10.*model\.num_classes=3"):
        ensure_verified(folder, expect_classes=10)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 5}, "format 5; this version reads up to 4. Update"),
        ({"splits": {}}, "lists splits"),
        ({"classes": []}, "is no manifest: classes"),
        ({"extra": 1}, "is no manifest: extra"),
    ],
)
def test_foreign_manifest(folder: Path, changes: dict[str, object], says: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=says):
        load_manifest(folder)


def test_unfinished_and_missing(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="did not finish"):
        load_manifest(folder)
    with pytest.raises(UserError, match=r"No data set at .*agmm data build"):
        load_manifest(folder / "elsewhere")


@pytest.mark.parametrize("check", [verify, ensure_verified])
def test_damage_is_found(folder: Path, check: object) -> None:
    assert callable(check)
    flip_a_byte(folder / "val.beton")
    with pytest.raises(UserError, match=r"val\.beton is damaged"):
        check(folder)
    os.truncate(folder / "val.beton", 5000)
    with pytest.raises(UserError, match=r"val\.beton has 5000 bytes"):
        check(folder)
    (folder / "val.beton").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*val\.beton"):
        check(folder)


@pytest.mark.parametrize(("key", "value"), [("content_digest", "0" * 64), ("count", 99), ("count_by_class", [1, 2, 3])])
def test_verify_compares_the_content(folder: Path, key: str, value: object) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    tree["splits"]["train"][key] = value
    edit(folder, splits=tree["splits"])
    with pytest.raises(UserError, match=r"than manifest\.json says"):
        verify(folder)


def test_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = module.file_digest

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(module, "file_digest", counted)
    for _ in range(3):
        ensure_verified(folder)
    assert hashed == ["train.beton", "val.beton"]
    os.utime(folder / "val.beton", ns=(1, 1))
    ensure_verified(folder)
    assert len(hashed) == 4


def test_a_folder_that_takes_no_stamp_is_hashed_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(module, "write_stamp", refuse)
    assert ensure_verified(folder).name == "square"
    flip_a_byte(folder / "train.beton")
    with pytest.raises(UserError, match="damaged"):
        ensure_verified(folder)
