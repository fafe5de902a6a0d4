"""Known data sets, and how the originals come onto this machine."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.packed_files import FASHION_CLASSES
from pipelines.errors import ServiceError, UserError
from pipelines.progress import Progress, Say

_TIMEOUT_S = 30
_COMMAND_TIMEOUT_S = 600
_APT = ("apt-get", "-o", f"Acquire::http::Timeout={_TIMEOUT_S}", "-o", "Acquire::Retries=1")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Original:
    """One file to get: the publisher's MD5 of it, and where known the SHA-256 of what it decompresses to."""

    file: str
    md5: str
    content_sha256: str | None = None


@dataclass(frozen=True)
class Known:
    """A data set that `agmm data fetch` can get."""

    title: str
    url: str
    originals: tuple[Original, ...]
    megabytes: int
    classes: tuple[str, ...] = ()
    debian_package: str | None = None


KNOWN: dict[str, Known] = {
    "fashion-mnist": Known(
        title="70,000 grey images of clothes, 28 x 28, 10 classes",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        originals=(
            Original(
                "train-images-idx3-ubyte.gz",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            Original(
                "train-labels-idx1-ubyte.gz",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            Original(
                "t10k-images-idx3-ubyte.gz",
                "bef4ecab320f06d8554ea6380940ec79",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            Original(
                "t10k-labels-idx1-ubyte.gz",
                "bb300cfdad3c16e7a12a480ee83cd310",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        megabytes=31,
        classes=FASHION_CLASSES,
        debian_package="dataset-fashion-mnist",
    ),
    "cifar10": Known(
        title="60,000 photographs, 32 x 32, 10 classes",
        url="https://www.cs.toronto.edu/~kriz/",
        originals=(Original("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
        megabytes=170,
    ),
    "cifar100": Known(
        title="60,000 photographs, 32 x 32, 100 classes",
        url="https://www.cs.toronto.edu/~kriz/",
        originals=(Original("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
        megabytes=169,
    ),
}

# Where Debian's package puts its files.
_DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")


def fetch(name: str, into: Path, say: Say) -> Path:
    """Get a known data set into the folder `into`/`name` and return that folder; every file's digest is checked.

    A second call finds it there. Raises UserError for an unknown name or a damaged copy, ServiceError when the files
    cannot be had. Nothing stays under the final name unless all of it is right.
    """
    if name not in KNOWN:
        raise UserError(f"Unknown data set {name!r}. Known: {', '.join(KNOWN)}.")
    known, target = KNOWN[name], Path(into) / name
    if target.exists():
        _check_present(known, target)
        say(f"{name} is there already: {target}")
        return target
    with _staging(target) as staging:
        if not _from_debian(known, staging, say):
            _from_url(name, known, staging, say)
        if known.classes:
            (staging / "classes.txt").write_text("\n".join(known.classes) + "\n", encoding="utf-8")
        staging.rename(target)
    say(f"{name}: {target}")
    return target


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target that does not outlive an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        staging.chmod(0o755)
    except OSError as error:
        raise UserError(f"Cannot write to {target.parent}: {error.strerror}. Choose another folder.") from error
    try:
        yield staging
    except OSError as error:
        raise ServiceError(f"Could not write {target}: {error}. Check the disk, then fetch again.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_present(known: Known, target: Path) -> None:
    for original in known.originals:
        file = target / original.file
        if not file.is_file() or not is_original(file, original):
            raise UserError(f"{file} is missing or damaged. Remove {target} and fetch again.")


def is_original(path: Path, original: Original) -> bool:
    """Whether the file is the publisher's, by MD5, or a recompressed copy with the same content, by SHA-256."""
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, _md5).hexdigest() == original.md5:
            return True
    if original.content_sha256 is None:
        return False
    try:
        with gzip.open(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == original.content_sha256
    except (OSError, EOFError, zlib.error):
        return False


def _md5() -> hashlib._Hash:
    """MD5 as the publishers' checksum; machines that forbid it for security still allow it for this."""
    return hashlib.md5(usedforsecurity=False)


def _from_debian(known: Known, staging: Path, say: Say) -> bool:
    """Take the files of Debian's package, installed or downloaded; False when this machine cannot."""
    if known.debian_package is None:
        return False
    if _copy_from(Path("/") / _DEBIAN_FOLDER, known, staging):
        say(f"taken from the installed package {known.debian_package}")
        return True
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    say(f"downloading Debian's package {known.debian_package} ({known.megabytes} MB)")
    with tempfile.TemporaryDirectory() as folder:
        unpacked = _unpack_package(known.debian_package, Path(folder))
        return unpacked is not None and _copy_from(unpacked / _DEBIAN_FOLDER, known, staging)


def _unpack_package(package: str, folder: Path) -> Path | None:
    """Download and unpack a package without installing it; neither needs root."""
    # apt hands the download to its own user, which cannot enter a private folder.
    folder.chmod(0o755)
    if not _runs([*_APT, "download", package], folder):
        is_root = os.geteuid() == 0
        if not (is_root and _runs([*_APT, "update"], folder) and _runs([*_APT, "download", package], folder)):
            return None
    archives = sorted(folder.glob("*.deb"))
    unpacked = folder / "unpacked"
    return unpacked if archives and _runs(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], folder) else None


def _runs(command: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _copy_from(folder: Path, known: Known, staging: Path) -> bool:
    files = [(folder / original.file, original) for original in known.originals]
    if not all(file.is_file() and is_original(file, original) for file, original in files):
        return False
    for file, original in files:
        shutil.copyfile(file, staging / original.file)
    return True


def _from_url(name: str, known: Known, staging: Path, say: Say) -> None:
    say(f"downloading {name} ({known.megabytes} MB) from {known.url}")
    for original in known.originals:
        file = staging / original.file
        try:
            _download(known.url + original.file, file)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(
                f"Could not download {known.url}{original.file}: {reason}. Check the network and proxy (https_proxy), "
                f"or put the files {', '.join(item.file for item in known.originals)} into a folder by hand and give "
                "that folder to `agmm data build`."
            ) from error
        if not is_original(file, original):
            raise ServiceError(f"{known.url}{original.file} came with a wrong checksum. Fetch again.")


def _download(url: str, path: Path) -> None:
    # The address comes from the table above, never from a user.
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, path.open("wb") as out:  # noqa: S310
        total = int(response.headers.get("Content-Length") or 0)
        with Progress(total, path.name, unit="B") as progress:
            while block := response.read(_BLOCK):
                out.write(block)
                progress.advance(len(block))
        if total and progress.done != total:
            raise ConnectionError(f"the connection ended after {progress.done} of {total} bytes")
