"""Models as folders of two plain files, and MLflow's registry of them.

`model.safetensors` holds weights and buffers, `model.json` all that is needed to use them. MLflow loads the folder
through `pipelines.pyfunc`, which is part of this package: nothing in an artifact is unpickled or executed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agmm.models import SpikingNetwork
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.checkpoint import sha256_of
from pipelines.checkpoints.tensor_file import write_tensors
from pipelines.config import DataConfig, ModelConfig, RunConfig
from pipelines.errors import ServiceError, UserError
from pipelines.network import build_network
from pipelines.storage import open_store
from pipelines.tracking.runs import connect, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_WEIGHTS, _CARD = "model.safetensors", "model.json"
_FORMAT = 1


class ModelCard(BaseModel):
    """What a model is, beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: int = _FORMAT
    name: str
    model: ModelConfig
    data: DataConfig
    frames: tuple[int, int, int, int] | None = None  # (T, 2, H, W) that it takes; none: RGB images
    classes: list[str] = []
    data_digest: str = ""
    run_id: str = ""
    code_version: str = ""
    metrics: dict[str, float] = {}
    weights_sha256: str = ""


@dataclass(frozen=True)
class Model:
    """A network ready to predict, with its card and the address it came from."""

    network: SpikingNetwork
    card: ModelCard
    uri: str
    checkpoint: str | None = None  # the checkpoint's address, where it came from one


def write_model(folder: Path, tensors: dict[str, Tensor], card: ModelCard) -> None:
    """Write weights and card into `folder`."""
    write_tensors(tensors, folder / _WEIGHTS)
    card = card.model_copy(update={"weights_sha256": sha256_of(folder / _WEIGHTS)})
    (folder / _CARD).write_text(card.model_dump_json(indent=1))


def read_model(folder: Path, uri: str) -> Model:
    """Read a folder of `write_model`. Raises UserError where it is not one, is damaged or of a newer format."""
    try:
        card = ModelCard.model_validate_json((folder / _CARD).read_text())
        digest = sha256_of(folder / _WEIGHTS)
    except (OSError, ValidationError) as error:
        raise UserError(f"{uri} is not a model of this program: {error}") from error
    if card.format != _FORMAT:
        raise UserError(f"{uri} has format {card.format}; this version reads {_FORMAT}. Use the version that wrote it.")
    if digest != card.weights_sha256:
        raise UserError(f"{uri}: {_WEIGHTS} does not have the SHA-256 that its card names. The model is refused.")
    try:
        return _ready(load_file(folder / _WEIGHTS), card, uri)
    except SafetensorError as error:
        raise UserError(f"{uri}: {_WEIGHTS} cannot be read: {error}") from error


def load_model(uri: str, tracking: str) -> Model:
    """A model by `models:/name@alias`, `runs:/id/model`, the address of a run's checkpoints, or a folder.

    Raises:
        UserError: where the address names no model of this program.
        ServiceError: where the service behind it does not answer.

    """
    if uri.startswith(("models:/", "runs:/")):
        with _downloaded(uri, tracking) as folder:
            return read_model(folder, uri)
    if (Path(uri) / _CARD).is_file():
        return read_model(Path(uri), uri)
    return _from_checkpoint(uri)


def register(client: MlflowClient, card: ModelCard, tensors: dict[str, Tensor], name: str | None) -> str:
    """Log a model to its run and, under a name, as a new version; returns its `models:/` address."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = card.frames or (card.data.resolution, card.data.resolution, 3)
    with tempfile.TemporaryDirectory(prefix="agmm-model-") as scratch, explained(str(client.tracking_uri)):
        folder = Path(scratch) / "model"  # its name is part of the artifact
        folder.mkdir()
        write_model(folder, tensors, card)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *shape))]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, card.model.num_classes))]),
        )
        with mlflow.start_run(run_id=card.run_id), redirect_stderr(StringIO()):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="pipelines.pyfunc",
                data_path=str(folder),
                signature=signature,
                input_example=np.zeros((1, *shape), dtype=np.uint8),
                pip_requirements=_requirements(),
                registered_model_name=name,
                metadata={"card": card.model_dump(mode="json")},
            )
    return f"models:/{name}/{info.registered_model_version}" if name else info.model_uri


def _requirements() -> list[str]:
    """What a model needs beside this package, which no index is asked for."""
    return [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "timm", "safetensors", "pydantic")]


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


def promote(client: MlflowClient, name: str, alias: str, number: int | None, say: Callable[[str], None]) -> str:
    """Point an alias at a version (default the newest) that downloads, verifies and builds; returns its address.

    Raises UserError for an unknown model or version, or one that is damaged; the alias is then unmoved.
    """
    known = {int(v.version): v for v in client.search_model_versions(f"name = '{_plain(name)}'")}
    if not known:
        names = sorted(model.name for model in client.search_registered_models())
        raise UserError(f"Unknown model {name!r}. Known: {', '.join(names) or 'none yet'}. See `agmm models list`.")
    chosen = max(known) if number is None else number
    if chosen not in known:
        raise UserError(f"{name} has no version {chosen}. Known: {', '.join(map(str, sorted(known)))}.")
    load_model(f"models:/{name}/{chosen}", str(client.tracking_uri))
    before = _aliased(client, name, alias)
    client.set_registered_model_alias(name, alias, str(chosen))
    was = f", was version {before.version}" if before else ""
    say(f"{name}@{alias} is now version {chosen}{was}")
    return f"models:/{name}@{alias}"


def _ready(tensors: dict[str, Tensor], card: ModelCard, uri: str) -> Model:
    network = build_network(card.model)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{uri}: the weights do not fit {card.model.arch}: {error}") from error
    return Model(network.eval(), card, uri)


def _from_checkpoint(uri: str) -> Model:
    base, _, name = uri.rstrip("/").rpartition("/")
    if not checkpoints.is_name(name):
        base, name = uri, ""
    store = open_store(base)
    known = checkpoints.committed(store)
    if not known or (name and name not in known):
        raise UserError(
            f"{uri} is no model: there is no {_CARD} and no committed checkpoint. "
            "Allowed: models:/name@alias, runs:/id/model, a checkpoint's address, a model's folder."
        )
    found = checkpoints.load(store, name or known[-1])
    config = RunConfig.model_validate(found.config)
    run_id = base.rpartition("/")[2]
    card = ModelCard(name=config.name, model=config.model, data=config.data, metrics=found.metrics, run_id=run_id)
    return replace(_ready(found.model, card, uri), checkpoint=f"{store.uri}/{name or known[-1]}")


@contextmanager
def _downloaded(uri: str, tracking: str) -> Iterator[Path]:
    import mlflow
    from mlflow.exceptions import MlflowException

    connect(tracking)
    with tempfile.TemporaryDirectory(prefix="agmm-model-") as scratch:
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
        except MlflowException as error:
            raise UserError(f"Cannot load {uri} from {tracking}: {error}. See `agmm models list`.") from error
        except OSError as error:
            raise ServiceError(f"Cannot download {uri}: {error}. Check the disk and the artifact store.") from error
        cards = list(Path(scratch).rglob(_CARD))
        if len(cards) != 1:
            raise UserError(
                f"{uri} is not a model of this program: it holds {len(cards)} files named {_CARD}, not one."
            )
        yield cards[0].parent


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None  # the alias is new


def _run_metric(client: MlflowClient, run_id: str | None, key: str) -> float | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).data.metrics.get(key) if run_id else None
    except MlflowException:
        return None  # the run was deleted; the version is still there


def _plain(name: str) -> str:
    if "'" in name:
        raise UserError(f"A model's name has no quotes: {name!r}.")
    return name
