"""Which agmm an installation has, as JSON. It also runs alone, on a head that has none: standard library only.

`code` is a digest of every file of the packages but what is compiled, so two installations that agree run the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("agmm", "pipelines", "cluster")
COMPILED = (".so", ".pyd", ".dylib")


def describe(needed: Sequence[str] = ()) -> dict[str, object]:
    """Tell of this installation: `version` and `code` (empty where there is none), `python`, `platform`, `missing`.

    needed: names of distributions; `missing` are those that are not installed.
    """
    folders = package_folders()
    return {
        "version": _version("agmm"),
        "code": digest(folders) if len(folders) == len(PACKAGES) else "",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": sysconfig.get_platform(),
        "missing": [name for name in needed if not _version(name)],
    }


def package_folders() -> dict[str, Path]:
    """The folders of the packages that are found here, by name. None of them is imported."""
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[name] = Path(spec.origin).parent
    return found


def package_files(folder: Path) -> Iterator[Path]:
    """What belongs to a package in its folder, sorted: no bytecode, and nothing hidden."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield path


def digest(folders: dict[str, Path]) -> str:
    """Digest of packages: 12 hexadecimal digits."""
    total = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in package_files(folder):
            if path.suffix not in COMPILED:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{name}/{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1:])))  # noqa: T201 (a job's output is its answer)
