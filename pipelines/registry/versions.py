"""Models in MLflow's registry: a version carries its card, its data, and the hash of every file."""

from __future__ import annotations

import tempfile
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.checkpoint import Checkpoint, sha256_of
from pipelines.config import RunConfig
from pipelines.data.manifest import Manifest
from pipelines.errors import ServiceError
from pipelines.progress import Say
from pipelines.registry.card import CARD, README, RECIPE, WEIGHTS, ModelCard, recipe_yaml
from pipelines.registry.model import write_model
from pipelines.registry.readme import description
from pipelines.storage import Store
from pipelines.tracking.runs import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models.model import ModelInfo

HASH_TAG = "agmm.sha256."  # and a file's name: see `file_hashes`
_DATA_TAG, _DATASET_TAG, _CODE_TAG = "agmm.data.", "agmm.dataset", "agmm.code_version"
_METRIC_TAGS = {"agmm.top1": "top1", "agmm.size_mb": "size_mb"}
_OWN = frozenset({WEIGHTS, CARD, README, RECIPE})
_OF_THE_READER = "registered_model_meta"  # MLflow writes it where a version is downloaded


def publish(
    client: MlflowClient,
    config: RunConfig,
    manifest: Manifest,
    run_id: str,
    store: Store,
    name: str | None,
    *,
    note: str = "",
    say: Say = lambda _: None,
) -> str:
    """Register the model of a run's newest checkpoint that verifies; returns its address.

    Args:
        config: the resolved tree that the run was trained with.
        manifest: of its data.
        store: of its checkpoints.
        name: of the registered model; none: the model is only logged to the run.
        note: a paragraph of markdown for its card, as how a search found it.
        say: told of checkpoints that are damaged.

    Raises:
        ServiceError: where MLflow or the store does not answer, there is no checkpoint of an epoch's end, or what
            arrived in MLflow is not what was sent.

    """
    found = _newest(store, say)
    card = ModelCard(
        name=config.name,
        model=config.model,
        data=config.data,
        frames=manifest.frames.shape if manifest.frames else None,
        classes=list(manifest.classes),
        data_digests={"train": manifest.splits["train"].content_digest, "val": manifest.splits["val"].content_digest},
        images={"train": manifest.splits["train"].count, "val": manifest.splits["val"].count},
        run_id=run_id,
        code_version=found.code_version,
        metrics=found.metrics,
        config=config.model_dump(mode="json") | _elsewhere(config),
        note=note,
    )
    return register(client, card, found.model, name)


def _elsewhere(config: RunConfig) -> dict[str, Any]:
    """The sections that name services of the machine that trained, without them."""
    return {key: getattr(config, key).model_dump(mode="json") | {"uri": None} for key in ("checkpoint", "tracking")}


def _newest(store: Store, say: Say) -> Checkpoint:
    name = checkpoints.newest_usable(store, say)
    if not name:
        raise ServiceError(f"There is no committed checkpoint at {store.uri} to register a model of.")
    found = checkpoints.load(store, name)
    if found.position.offset:
        raise ServiceError(
            f"{store.uri}/{name} was saved within an epoch, so that its accuracy is not known. "
            "Train on with --resume: the end of the epoch is registered."
        )
    return found


def register(client: MlflowClient, card: ModelCard, tensors: dict[str, Tensor], name: str | None) -> str:
    """Log a model to its run and, under a name, as a new version; returns its `models:/` address.

    The version is made once the files have been read back and are the ones that were sent, and has its tags from the
    start. Raises ServiceError where they are not, or where MLflow does not answer.
    """
    import mlflow

    card = card.model_copy(update={"registered_as": name or ""})
    with tempfile.TemporaryDirectory(prefix="agmm-model-") as scratch, explained(str(client.tracking_uri)):
        folder = Path(scratch) / "model"  # its name is part of the artifact
        folder.mkdir()
        write_model(folder, tensors, card)
        info = _log(folder, card)
        if card.config:
            client.log_text(card.run_id, recipe_yaml(card), RECIPE)
        if not name:
            return info.model_uri
        tags = _tags(card, _stored(info.model_uri, folder))
        with redirect_stderr(StringIO()):
            found = mlflow.register_model(info.model_uri, name, tags=tags)
        client.update_model_version(name, found.version, description(card))
    return f"models:/{name}/{found.version}"


def file_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a model as MLflow stores it, by the names that the version's tags have.

    The model's own four files go by their names (`model.safetensors`), all others by their path below `root`
    (`MLmodel`); no two have the same one.
    """
    cards = list(root.rglob(CARD))
    folder = cards[0].parent if len(cards) == 1 else root
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path != root / _OF_THE_READER]
    return {_name(path, root, folder): sha256_of(path) for path in files}


def versions(client: MlflowClient) -> list[dict[str, Any]]:
    """All registered versions, newest first: name, version, aliases, run and top-1 accuracy of their run."""
    rows = []
    for found in sorted(client.search_model_versions(), key=lambda v: (v.name, -int(v.version))):
        aliases = client.get_registered_model(found.name).aliases
        rows.append(
            {
                "name": found.name,
                "version": int(found.version),
                "aliases": sorted(alias for alias, number in aliases.items() if str(number) == str(found.version)),
                "run_id": found.run_id,
                "top1": _run_metric(client, found.run_id, "val/top1"),
            }
        )
    return rows


def _log(folder: Path, card: ModelCard) -> ModelInfo:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *card.input_shape))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, card.model.num_classes))]),
    )
    with mlflow.start_run(run_id=card.run_id), redirect_stderr(StringIO()):
        return mlflow.pyfunc.log_model(
            name="model",
            loader_module="pipelines.pyfunc",
            data_path=str(folder),
            signature=signature,
            input_example=np.zeros((1, *card.input_shape), dtype=np.uint8),
            pip_requirements=_requirements(),
        )


def _stored(model_uri: str, sent: Path) -> dict[str, str]:
    """The hashes of what MLflow has stored, once those of the files that were sent are among them."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="agmm-model-") as scratch:
        mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        hashes = file_hashes(Path(scratch))
    for name, digest in file_hashes(sent).items():
        if hashes.get(name) != digest:
            raise ServiceError(
                f"{model_uri}: {name} is not in MLflow's artifact store as it was sent, so that nothing was "
                "registered. Check the store, and try again."
            )
    return hashes


def _tags(card: ModelCard, hashes: dict[str, str]) -> dict[str, str]:
    """What the registry records of a version apart from its files, so that the two can be compared."""
    tags = {f"{HASH_TAG}{name}": digest for name, digest in hashes.items()}
    tags |= {f"{_DATA_TAG}{split}": digest for split, digest in card.data_digests.items()}
    tags |= {tag: repr(card.metrics[name]) for tag, name in _METRIC_TAGS.items() if name in card.metrics}
    return tags | {_DATASET_TAG: card.data.dataset, _CODE_TAG: card.code_version}


def _name(path: Path, root: Path, folder: Path) -> str:
    if path.parent == folder and path.name in _OWN:
        return path.name
    below = path.relative_to(root).as_posix()
    return f"./{below}" if below in _OWN else below  # one of MLflow's is never taken for one of the model's


def _requirements() -> list[str]:
    """What a model needs beside this package, which no index is asked for."""
    return [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "timm", "safetensors", "pydantic")]


def _run_metric(client: MlflowClient, run_id: str | None, key: str) -> float | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).data.metrics.get(key) if run_id else None
    except MlflowException:
        return None  # the run was deleted; the version is still there
