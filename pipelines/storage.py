"""Files by key in a folder or an S3 bucket: one small interface, so that a checkpoint does not know which."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlparse

from pipelines.errors import ServiceError, UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


_BLOCK = 8 << 20


class Store(Protocol):
    """Files below one address. Keys use `/`. Every method raises ServiceError where the place cannot be used."""

    uri: str

    def put(self, source: Path, key: str) -> None:
        """Copy a local file to `key`; readers see the whole file or none."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless `key` is there; of several who try, one is told True."""

    def get(self, key: str, target: Path) -> None:
        """Copy `key` to a local file."""

    def read(self, key: str) -> bytes:
        """The content of a small file."""

    def size(self, key: str) -> int:
        """Bytes of `key`."""

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes from `start` up to `stop` of `key`, fewer where it ends before."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with `prefix`, sorted."""

    def delete(self, keys: list[str]) -> None:
        """Remove keys; one that is not there is fine."""


def open_store(uri: str) -> Store:
    """The store at a folder's path, `file://...` or `s3://bucket/prefix`. Raises UserError for another scheme."""
    parts = urlparse(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UserError(f"{uri!r} names no bucket. Write s3://bucket/prefix.")
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme not in ("", "file"):
        raise UserError(f"Cannot store files at {uri!r}: the scheme must be s3:// or a folder's path.")
    return FolderStore(Path(parts.path if parts.scheme else uri).absolute())


def check_writable(store: Store, scratch: Path) -> None:
    """Put and delete a small file, so that a bad address is found before any work. Raises ServiceError."""
    probe = scratch / f"probe-{uuid.uuid4().hex}"
    with _explained(f"Cannot write {probe}"):
        scratch.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"agmm")
    try:
        store.put(probe, probe.name)
        store.delete([probe.name])
    finally:
        probe.unlink()


def sha256_in(store: Store, key: str) -> str:
    """SHA-256 of what is stored at `key`, in hexadecimal, read in blocks."""
    digest, size = hashlib.sha256(), store.size(key)
    for start in range(0, size, _BLOCK):
        digest.update(store.read_range(key, start, start + _BLOCK))
    return digest.hexdigest()


class FolderStore:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def put(self, source: Path, key: str) -> None:
        target = self.root / key
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with _explained(f"Cannot write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source, partial)
                sync(partial)
                partial.replace(target)
                sync(target.parent)
            finally:
                partial.unlink(missing_ok=True)

    def create(self, key: str, content: bytes) -> bool:
        target = self.root / key
        with _explained(f"Cannot write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open("xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
            sync(target)
            sync(target.parent)
        return True

    def get(self, key: str, target: Path) -> None:
        with _explained(f"Cannot read {self.root / key}"):
            shutil.copyfile(self.root / key, target)

    def read(self, key: str) -> bytes:
        with _explained(f"Cannot read {self.root / key}"):
            return (self.root / key).read_bytes()

    def size(self, key: str) -> int:
        with _explained(f"Cannot read {self.root / key}"):
            return (self.root / key).stat().st_size

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with _explained(f"Cannot read {self.root / key}"), (self.root / key).open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def keys(self, prefix: str) -> list[str]:
        base = self.root / prefix.rpartition("/")[0]
        with _explained(f"Cannot list {self.root}"):
            found = [path.relative_to(self.root).as_posix() for path in base.rglob("*") if path.is_file()]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, keys: list[str]) -> None:
        with _explained(f"Cannot delete below {self.root}"):
            for key in keys:
                (self.root / key).unlink(missing_ok=True)
            for folder in {(self.root / key).parent for key in keys}:
                if folder != self.root and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


class S3Store:
    """A store in an S3 bucket. Address, region and credentials come from boto3's own environment and files."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = _s3_client()

    def put(self, source: Path, key: str) -> None:
        with self._explained("write"):
            self._client.upload_file(str(source), self.bucket, self.prefix + key)

    def create(self, key: str, content: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._explained("write"):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                # 409: another one is being created there at this moment
                if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
        return True

    def get(self, key: str, target: Path) -> None:
        with self._explained("read"):
            self._client.download_file(self.bucket, self.prefix + key, str(target))

    def read(self, key: str) -> bytes:
        with self._explained("read"):
            return self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()

    def size(self, key: str) -> int:
        with self._explained("read"):
            return self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ContentLength"]

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with self._explained("read"):
            part = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key, Range=f"bytes={start}-{stop - 1}")
            return part["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        with self._explained("list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            return sorted(item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", []))

    def delete(self, keys: list[str]) -> None:
        with self._explained("delete"):
            for key in keys:
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            raise ServiceError(
                f"Cannot {verb} {self.uri} at {self._client.meta.endpoint_url}: {str(error).rstrip('.')}. "
                "Check that the server is up (`agmm status`), the bucket is there and the credentials are right "
                "(AWS_ENDPOINT_URL_S3, AWS_SHARED_CREDENTIALS_FILE or AWS_ACCESS_KEY_ID)."
            ) from error


def _s3_client() -> S3Client:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    timeouts = Config(
        connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 4}, signature_version="s3v4"
    )
    try:
        return boto3.client("s3", config=timeouts)
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"Cannot use S3: {error}. Check AWS_ENDPOINT_URL_S3, AWS_CONFIG_FILE and AWS_PROFILE."
        ) from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(
            f"{what}: {error.strerror or error}. Check the path, its permissions and the disk."
        ) from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
