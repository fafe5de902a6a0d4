"""Kinds of values that settings are made of: each is refused where a manifest could not carry it as it is meant."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _no_credentials(address: str) -> str:
    parts = urlsplit(_one_line(address))
    if parts.username or parts.password:
        raise ValueError("must hold no user and no password: name a secret that has them, in secrets")
    return address


def _http(address: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?", _no_credentials(address)):
        raise ValueError("must be http://host[:port][/path] or https://...")
    return address


def _store(address: str) -> str:
    if not re.fullmatch(r"(s3://[a-z0-9][a-z0-9.-]+|file://|/)[A-Za-z0-9._~/-]*", _no_credentials(address)):
        raise ValueError("must be s3://bucket/prefix, or an absolute folder that every node has")
    return address


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not re.fullmatch(r"/[A-Za-z0-9._/-]+", path) or ".." in pure.parts:
        raise ValueError("must be an absolute path of letters, digits, dots, dashes and underscores, without ..")
    return str(pure)


def _range(workers: Any) -> Any:
    least, most = workers if isinstance(workers, (list, tuple)) and len(workers) == 2 else (workers, workers)
    if not all(type(each) is int for each in (least, most)) or not 1 <= least <= most:
        raise ValueError("must be a number, or [min, max] with 1 <= min <= max")
    return (least, most)


# What KubeRay takes as the name of a RayJob has at most 47 characters; Slurm and clouds are less strict.
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@,=+\[\]-]{0,127}$")]
# KubeRay puts it between double quotes of a shell, where $(...) would be run.
Recipe = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_./-]{0,254}$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]{0,254}$")]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]*(MB|GB|TB)$")]
Line = Annotated[str, AfterValidator(_one_line)]
Http = Annotated[str, AfterValidator(_http)]
Store = Annotated[str, AfterValidator(_store)]
Folder = Annotated[str, AfterValidator(_absolute)]
Range = Annotated[tuple[int, int], BeforeValidator(_range)]
Count = Annotated[int, Field(ge=1)]
