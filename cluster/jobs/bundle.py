"""What travels with a job: its recipes, what the user includes, and agmm's own code where the head has another.

Code travels as what its wheel holds, unpacked: Ray would install a wheel with all that it depends on, on every node,
and knows a wheel that it has by the file's name alone, so changed code of one version would stay behind.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import UserError
from cluster.jobs.code import COMPILED, PACKAGES, package_files, package_folders

MOST_BYTES = 64 * 2**20
_RECIPES = (".yaml", ".yml")
_DATA = (
    *(".beton", ".npy", ".npz", ".parquet", ".h5", ".hdf5", ".aedat", ".db", ".sqlite"),
    *(".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".pkl", ".zip", ".tar", ".gz", ".tgz", ".xz", ".zst"),
    *(".jpg", ".jpeg", ".png"),
)
_SHOWN = 5


class Bundle(NamedTuple):
    """The words of a command as they are on the head, and the files that lie in its folder there, by their names."""

    words: list[str]
    files: dict[str, Path]


def bundle(command: Sequence[str], include: Sequence[str] = ()) -> Bundle:
    """Choose what travels: existing *.yaml and *.yml files among the command's words, and what is included.

    include: files and folders. What is below the current folder keeps its path, anything else its own name; hidden
    files and bytecode stay behind.

    Raises UserError for what does not belong into a job: data, weights, hidden files by name, more than 64 MiB.
    """
    files: dict[str, Path] = {}
    for given in include:
        for name, path in _included(given):
            if files.setdefault(name, path).resolve() != path.resolve():
                raise UserError(f"--include has two files named {name}: {files[name]} and {path}. Rename one.")
    _refuse_data(files)
    words = _with_recipes(command, files)
    refuse_large(files)
    return Bundle(words, files)


def refuse_large(files: Mapping[str, Path]) -> None:
    """Raise UserError, with the names of the largest, for files of more than 64 MiB together."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if (total := sum(sizes.values())) <= MOST_BYTES:
        return
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:_SHOWN]
    raise UserError(
        f"{total / 2**20:.1f} MiB would travel with the job; allowed are {MOST_BYTES / 2**20:.0f}. The largest: "
        + ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
        + ". Include less, and push data with `agmm data push FOLDER s3://bucket/prefix`."
    )


@contextmanager
def runtime_environment(files: Mapping[str, Path], code: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Copy files into folders that Ray sends, while the context lasts; what of a runtime environment names them.

    code: as `code_files` gives it. Each of its top folders is a module path of its own, as Ray wants it.
    """
    with tempfile.TemporaryDirectory(prefix="agmm-job-") as temporary:
        work, modules = Path(temporary, "work"), Path(temporary, "code")
        _copy(files, work)
        _copy(code, modules)
        found: dict[str, Any] = {"working_dir": str(work)} if files else {}
        if code:
            found["py_modules"] = [str(path) for path in sorted(modules.iterdir())]
        yield found


def code_files(*, compiled: bool) -> dict[str, Path]:
    """The running agmm, checkout or installed, as a wheel would hold it; with its libraries if `compiled`.

    Raises UserError where the packages are not files.
    """
    folders = package_folders()
    if not folders:
        raise UserError("This agmm is not a folder of files, so it cannot be sent. Submit from a checkout.")
    found = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in folders.items()
        for path in package_files(folder)
        if compiled or path.suffix not in COMPILED
    }
    return found | _metadata_files()


def _metadata_files() -> dict[str, Path]:
    """What tells a head the version. Not direct_url.json: it names a folder of this machine."""
    try:
        distribution = importlib.metadata.distribution("agmm")
    except importlib.metadata.PackageNotFoundError:
        return {}
    folder = f"agmm-{distribution.version}.dist-info"
    # A checkout that Python runs in has its metadata in another folder, under another name.
    places = {
        name: [Path(str(distribution.locate_file(place))) for place in (f"{folder}/{name}", f"agmm.egg-info/{other}")]
        for name, other in (("METADATA", "PKG-INFO"), ("entry_points.txt", "entry_points.txt"))
    }
    return {f"{folder}/{name}": path for name, paths in places.items() for path in paths if path.is_file()}


def _included(given: str) -> Iterator[tuple[str, Path]]:
    path = Path(given)
    if not path.exists():
        raise UserError(f"--include {given}: there is no such file or folder.")
    full = path.resolve()
    here = Path.cwd().resolve()
    base = here if full.is_relative_to(here) else full.parent
    if full != base and full.relative_to(base).parts[0] in PACKAGES:
        raise UserError(f"--include {given} would stand before agmm's own packages. --with-code sends those.")
    if any(part.startswith(".") for part in full.relative_to(base).parts):
        raise UserError(f"--include {given}: hidden files and folders (.git, .env) stay here. Include what is needed.")
    for each in [full] if full.is_file() else package_files(full):
        yield each.relative_to(base).as_posix(), each


def _refuse_data(files: Mapping[str, Path]) -> None:
    data = [name for name in files if name.lower().endswith(_DATA)]
    if data:
        more = f" and {len(data) - _SHOWN} more" if len(data) > _SHOWN else ""
        raise UserError(
            f"--include has data or weights: {', '.join(data[:_SHOWN])}{more}. They do not travel with a job: "
            "push data with `agmm data push FOLDER s3://bucket/prefix`, and name weights by an address that the head "
            "can read."
        )


def _with_recipes(command: Sequence[str], files: dict[str, Path]) -> list[str]:
    """The command's words, each recipe that is a file among them renamed to what `files` gets for it."""
    names: dict[str, str] = {}
    here = Path.cwd().resolve()
    for word in dict.fromkeys(command):
        path = Path(word)
        if not word.endswith(_RECIPES) or not path.is_file():
            continue
        full = path.resolve()
        if full.is_relative_to(here) and (kept := full.relative_to(here).as_posix()) in files:
            names[word] = kept
            continue
        # Two recipes of different folders may have one name.
        name = path.name if path.name not in files else f"{len(names)}-{path.name}"
        names[word], files[name] = name, path
    return [names.get(word, word) for word in command]


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    try:
        for name, path in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        raise UserError(f"What travels with the job cannot be copied: {error}.") from error
