"""A store in an S3 bucket that survives what passes and says clearly what does not.

Three layers of repetition, each for what the one below cannot do. botocore repeats a request on 5xx, throttling, broken
connections and timeouts, at once and in mode `standard`: `adaptive` also slows all requests down after one throttled
one, which is meant for thousands of them, and `legacy` waits seconds for a single reset. s3transfer sends big files in
parts, each a request of its own, and aborts what fails. `_retry` here repeats a whole operation: a body that breaks off
while it is read, which botocore does not repeat, and an outage longer than botocore's second.
"""

from __future__ import annotations

import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipelines.errors import NotThere, ServiceError, UserError
from pipelines.storage import explained
from pipelines.storage.s3_errors import (
    FAILURES,
    NO_KEY,
    UNREACHED,
    cause_of,
    explain,
    is_passing,
    is_timeout,
    status_of,
)

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_T = TypeVar("_T")
_BLOCK = 256 << 10
_AT_ONCE = 4  # parts in flight, of a put or a get: more would take cores from the training beside it
_BATCH = 1000  # the protocol's limit for one deletion


@dataclass(frozen=True)
class Limits:
    """How long to wait and how often to try. Times in seconds.

    A server that takes requests and never answers costs `attempts * read_timeout`, 48 s, and then an error; a multipart
    upload as much again, for its abortion. Bodies that stall midway are given up after `patience` and one more round of
    timeouts. Everything else that fails is tried `tries` times with pauses that double, about 25 s in all.
    """

    connect_timeout: float = 8.0  # also for sending each block of 128 KiB: a slow line takes far less
    read_timeout: float = 12.0
    attempts: int = 4
    tries: int = 8
    first_pause: float = 0.25
    patience: float = 45.0
    part: int = 16 << 20  # bytes; what is bigger is sent and fetched in parts of this size

    def pauses(self) -> Iterator[float]:
        """What to wait after each try but the last, with jitter, so that many clients do not come back at once."""
        for count in range(self.tries - 1):
            yield self.first_pause * 2**count * random.uniform(0.6, 1.0)  # noqa: S311 (no secret)


class S3Store:
    """Files in a bucket. Address, region and credentials come from boto3's own environment and files.

    Credentials that expire are renewed by the client itself. Threads may share a store: its client is safe for them,
    and the session, which is not, is its own and not used after the client is made. `proven`: see `open_store`.
    """

    def __init__(self, bucket: str, prefix: str, limits: Limits = Limits(), *, proven: bool = False) -> None:
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._limits, self._reached = limits, proven
        self._client = _client(limits)
        self._transfer = TransferConfig(
            multipart_threshold=limits.part,
            multipart_chunksize=limits.part,
            max_concurrency=_AT_ONCE,
            preferred_transfer_client="classic",  # the other one has retries and timeouts of its own
        )

    def put(self, source: Path, key: str) -> None:
        name = self.prefix + key
        send = partial(self._client.upload_file, str(source), self.bucket, name, Config=self._transfer)
        self._retry(f"write {key} to", send)
        if source.stat().st_size >= self._transfer.multipart_threshold:
            self._abort_others(name)

    def _abort_others(self, name: str) -> None:
        """Free the parts of earlier uploads of this file that nobody will end: of a killed process, of a lost answer.

        A file has one writer at a time, so that none of them is at work.
        """
        with suppress(*FAILURES):  # the file is there; what stays behind costs room and is met again next time
            uploads = self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=name).get("Uploads", [])
            for key, upload in ((found["Key"], found["UploadId"]) for found in uploads):
                if key == name:
                    self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)

    def create(self, key: str, content: bytes) -> bool:
        return self._retry(f"write {key} to", partial(self._create, key, content))

    def _create(self, key: str, content: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if status_of(error) != 412:
                raise
            # A request of ours whose answer was lost may have written it, and been repeated since.
            return self._holds(key, content)
        return True

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self._body(key) == content
        except ClientError as error:
            if status_of(error) == 404:  # removed meanwhile, by the one whose it was
                return False
            raise

    def get(self, key: str, target: Path) -> None:
        head = self._retry(
            f"read {key} in", partial(self._client.head_object, Bucket=self.bucket, Key=self.prefix + key)
        )
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with explained(f"Cannot write {target}"):
            try:
                scratch.touch()
                self._fetch(key, head["ETag"], head["ContentLength"], scratch)
                scratch.replace(target)
            finally:
                scratch.unlink(missing_ok=True)

    def _fetch(self, key: str, version: str, size: int, target: Path) -> None:
        """Get parts by threads. Not `download_file`: its tries multiply botocore's, minutes for a silent server."""
        step = self._limits.part

        def fetch(start: int) -> None:
            wanted = _range(start, min(start + step, size))
            self._retry(f"read {key} in", partial(self._copy, key, target, start, Range=wanted, IfMatch=version))

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(fetch, range(0, size, step)):
                pass

    def _copy(self, key: str, target: Path, start: int, **conditions: Any) -> None:
        with target.open("r+b") as file:
            file.seek(start)
            shutil.copyfileobj(self._open(key, **conditions), file, _BLOCK)

    def read(self, key: str) -> bytes:
        return self._retry(f"read {key} in", partial(self._body, key))

    def size(self, key: str) -> int:
        ask = partial(self._client.head_object, Bucket=self.bucket, Key=self.prefix + key)
        return self._retry(f"read {key} in", ask)["ContentLength"]

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._retry(f"read {key} in", partial(self._part, key, start, stop)) if start < stop else b""

    def _part(self, key: str, start: int, stop: int) -> bytes:
        try:
            return self._body(key, Range=_range(start, stop))
        except ClientError as error:
            if status_of(error) == 416:  # it ends before `start`
                return b""
            raise

    def _open(self, key: str, **conditions: Any) -> StreamingBody:
        return self._client.get_object(Bucket=self.bucket, Key=self.prefix + key, **conditions)["Body"]

    def _body(self, key: str, **conditions: Any) -> bytes:
        return self._open(key, **conditions).read()

    def keys(self, prefix: str) -> list[str]:
        return self._retry(f"list {prefix}* in", partial(self._keys, self.prefix + prefix))

    def _keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(item["Key"].removeprefix(self.prefix) for page in pages for item in page.get("Contents", []))

    def delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), _BATCH):
            self._retry("delete in", partial(self._delete, keys[start : start + _BATCH]))

    def _delete(self, keys: list[str]) -> None:
        objects: list[ObjectIdentifierTypeDef] = [{"Key": self.prefix + key} for key in keys]
        answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", []):  # in an answer that says 200
            raise ClientError({"Error": {"Code": failed["Code"], "Message": failed["Message"]}}, "DeleteObjects")

    def _retry(self, what: str, call: Callable[[], _T]) -> _T:
        began, pauses = time.monotonic(), self._limits.pauses()
        while True:
            try:
                result = call()
            except FAILURES as error:
                pause = self._pause(cause_of(error), began, pauses)
                if pause is None:
                    raise self._explained(what, cause_of(error)) from error
                time.sleep(pause)
            else:
                self._reached = True
                return result

    def _pause(self, error: BaseException, began: float, pauses: Iterator[float]) -> float | None:
        """Seconds until the next try; None to give up."""
        overdue = is_timeout(error) and time.monotonic() - began > self._limits.patience
        misdirected = isinstance(error, UNREACHED) and not self._reached
        return None if overdue or misdirected or not is_passing(error) else next(pauses, None)

    def _explained(self, what: str, error: BaseException) -> ServiceError:
        why = explain(error)
        text = str(error).rstrip(".")
        kind = NotThere if why is NO_KEY else ServiceError
        return kind(f"Cannot {what} {self.uri} at {self._client.meta.endpoint_url}: {why.what} ({text}). {why.todo}")


def _range(start: int, stop: int) -> str:
    return f"bytes={start}-{stop - 1}"


def _client(limits: Limits) -> S3Client:
    settings = Config(
        connect_timeout=limits.connect_timeout,
        read_timeout=limits.read_timeout,
        retries={"mode": "standard", "total_max_attempts": limits.attempts},
        max_pool_connections=2 * _AT_ONCE,
        signature_version="s3v4",
    )
    try:
        return boto3.session.Session().client("s3", config=settings)
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"Cannot use S3: {error}. Check AWS_ENDPOINT_URL_S3, AWS_CONFIG_FILE and AWS_PROFILE."
        ) from error
