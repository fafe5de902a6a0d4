"""A registered version's files on this machine, held against the hashes that registering left in its tags."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipelines.errors import Refused, ServiceError
from pipelines.registry import HASH_TAG, Model, file_hashes, load_model
from pipelines.storage.s3_errors import FAILURES

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

VAL_TAG, TOP1_TAG = "agmm.data.val", "agmm.top1"
_REQUIRED = (f"{HASH_TAG}model.safetensors", f"{HASH_TAG}model.json", VAL_TAG, TOP1_TAG)
_DESCRIPTION, _LOADER = "MLmodel", "pipelines.pyfunc"


@dataclass(frozen=True)
class Artifact:
    """A version whose files are those that were registered, in `folder` as long as it is open."""

    version: ModelVersion
    folder: Path
    model: Model

    @property
    def val_digest(self) -> str:
        """Content digest of the validation images that its figures are of."""
        return str(self.version.tags[VAL_TAG])


@contextmanager
def opened(version: ModelVersion, tracking: str) -> Iterator[Artifact]:
    """Download a version, check every file, build it.

    Raises:
        Refused: where its record is incomplete, a file is not what was registered, or it does not load.
        ServiceError: where its files cannot be downloaded.

    """
    label = f"{version.name} version {version.version}"
    _check_record(label, version.tags)
    with tempfile.TemporaryDirectory(prefix="agmm-promote-") as scratch:
        root = download(address(version), scratch)
        _check_files(label, root, version.tags)
        folder = root / data_path(label, root)
        try:
            model = load_model(str(folder), tracking)
        except ValueError as error:
            raise Refused(f"{label} does not load: {error}") from error
        yield Artifact(version, folder, model)


def address(version: ModelVersion) -> str:
    """The `models:/` address of a version."""
    return f"models:/{version.name}/{version.version}"


def download(uri: str, into: str) -> Path:
    """What MLflow has at an address, in a folder. Raises ServiceError."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=into))
    except (MlflowException, *FAILURES) as error:
        raise ServiceError(f"Cannot download {uri}: {error}. Check `agmm status`, and the artifact store.") from error


def data_path(label: str, root: Path) -> Path:
    """Where below `root` the model's own files are, as `MLmodel` has it.

    Raises Refused where that would have MLflow run another module than this package's, or code from the artifact.
    """
    try:
        flavor = yaml.safe_load((root / _DESCRIPTION).read_text(encoding="utf-8"))["flavors"]["python_function"]
        loader, code, data = flavor["loader_module"], flavor.get("code"), Path(flavor["data"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{label} has no {_DESCRIPTION} that can be read: {type(error).__name__}: {error}.") from error
    if loader != _LOADER or code is not None:
        raise Refused(f"{label}: {_DESCRIPTION} would have {loader!r} and code {code!r} loaded, not {_LOADER} alone.")
    if not (root / data).resolve().is_relative_to(root.resolve()):
        raise Refused(f"{label}: {_DESCRIPTION} has the model outside of the artifact, at {str(data)!r}.")
    return data


def recorded(tags: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by file, as it was registered."""
    return {key.removeprefix(HASH_TAG): value for key, value in tags.items() if key.startswith(HASH_TAG)}


def _check_record(label: str, tags: Mapping[str, str]) -> None:
    missing = [tag for tag in _REQUIRED if not tags.get(tag)]
    if missing:
        raise Refused(
            f"{label} has no {', '.join(missing)} among its tags: it cannot be held against what was registered. "
            "Register the model again."
        )
    if not is_figure(tags[TOP1_TAG]):
        raise Refused(f"{label} was registered with {TOP1_TAG}={tags[TOP1_TAG]!r}, which is no accuracy.")


def is_figure(text: str | None) -> bool:
    """Whether a tag holds a finite number."""
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False


def _check_files(label: str, root: Path, tags: Mapping[str, str]) -> None:
    there, known = file_hashes(root), recorded(tags)
    if not there:
        raise Refused(f"{label}: the artifact store has no files of it.")
    for name in sorted(known.keys() | there.keys()):
        if name not in there:
            raise Refused(f"{label}: {name} is missing. It was registered with SHA-256 {known[name]}.")
        if name not in known:
            raise Refused(f"{label}: {name} was not there when it was registered.")
        if there[name] != known[name]:
            raise Refused(f"{label}: {name} has SHA-256 {there[name]}, and was registered with {known[name]}.")
