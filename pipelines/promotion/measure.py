"""Figures of several versions on the same verified images."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.beton import BetonReader
from pipelines.data.manifest import beton_path, content_digest, ensure_verified, load_manifest
from pipelines.data.staging import data_folder
from pipelines.errors import Refused, UserError
from pipelines.evaluate import evaluate_model
from pipelines.progress import Say
from pipelines.promotion.artifact import Artifact
from pipelines.promotion.rules import figures


def verified_data(artifact: Artifact, data_uri: str | None, say: Say) -> Path:
    """The folder of the data set that a version's figures are of, its own or at `data_uri`, every image checked.

    Raises:
        Refused: where its validation images are not those of the version.
        UserError: where there is no data set, or it is damaged.

    """
    data = artifact.model.card.data
    folder = data_folder(data_uri or data.uri, data.dataset, say)
    _check_digest(artifact, folder, load_manifest(folder).splits["val"].content_digest)
    ensure_verified(folder, say=say)
    # the images themselves: a manifest is easily edited, and so is the stamp that spares hashing
    _check_digest(artifact, folder, content_digest(BetonReader(beton_path(folder, "val"))))
    return folder


def _check_digest(artifact: Artifact, folder: Path, digest: str) -> None:
    if digest != artifact.val_digest:
        version = artifact.version
        raise Refused(
            f"{folder} is another data set than that of {version.name} version {version.version}: its validation "
            f"images have content digest {digest}, not {artifact.val_digest}. Give the right one with --data."
        )


def measured(artifact: Artifact, folder: Path, tracking: str, say: Say) -> dict[str, float]:
    """Figures of a version on every validation image of `folder`, and their `count`.

    Raises Refused where it cannot run on this data.
    """
    label = f"{artifact.version.name} version {artifact.version.version}"
    say(f"measuring {label} on {folder}")
    try:
        evaluation = evaluate_model(str(artifact.folder), str(folder), tracking, say)
    except UserError as error:
        raise Refused(f"{label} cannot be measured on {folder}: {error}") from error
    return figures(evaluation, artifact.model.card.metrics) | {"count": evaluation["count"]}
