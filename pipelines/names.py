"""What names and addresses may hold before they become paths or keys: nothing that leads elsewhere, or is not seen."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from pipelines.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, marks that turn or join text, half characters, line ends


def has_unseen(text: str) -> bool:
    """Whether a character of the text shows nothing, or changes how others are shown."""
    return any(unicodedata.category(each) in _UNSEEN for each in text)


def refuse_unseen(texts: Iterable[str], where: str) -> None:
    """Raise UserError for the first text with such a character."""
    for text in texts:
        if has_unseen(text):
            raise UserError(f"{where}: {text!a} has characters that cannot be seen. Write it without them.")


def is_file_name(text: str) -> bool:
    """Whether a manifest may name a file so: no folder, no dot in front, nothing odd."""
    return _FILE.fullmatch(text) is not None


def check_s3_address(uri: str, bucket: str, prefix: str) -> None:
    """Raise UserError for a bucket that none can be, and for a prefix that is another key than it looks like."""
    refuse_unseen([uri], "An address in S3")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{uri!r} names no bucket. Write s3://bucket/prefix, the bucket in 3 to 63 letters and digits.")
    if {"?", "#"} & set(uri) or {"", ".", ".."} & set(prefix.split("/") if prefix else ()):
        raise UserError(f"{uri!r} is no address in S3. Allowed: s3://bucket/prefix without ?, #, empty parts, . and ..")


def checked_run_id(run_id: str) -> str:
    """A run's id, which names files and folders here. Raises UserError for one that a tracking server cannot mean."""
    if not _RUN_ID.fullmatch(run_id):
        raise UserError(f"{run_id!r} is no id of a run. MLflow's have letters, digits, dashes and underscores.")
    return run_id
