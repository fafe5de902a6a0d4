"""Models as folders of plain files: written, read, and loaded from wherever they are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agmm.models import SpikingNetwork
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.checkpoint import sha256_of
from pipelines.checkpoints.tensor_file import write_tensors
from pipelines.config import RunConfig
from pipelines.errors import ServiceError, UserError
from pipelines.network import build_network
from pipelines.registry.card import CARD, README, RECIPE, WEIGHTS, ModelCard, parse_card, recipe_yaml
from pipelines.registry.readme import markdown
from pipelines.storage import open_store
from pipelines.tracking.runs import connect


@dataclass(frozen=True)
class Model:
    """A network ready to predict, with its card and the address it came from."""

    network: SpikingNetwork
    card: ModelCard
    uri: str
    checkpoint: str | None = None  # the checkpoint's address, where it came from one


def write_model(folder: Path, tensors: dict[str, Tensor], card: ModelCard) -> ModelCard:
    """Write weights, card, `README.md` and, where the card has a configuration, `recipe.yaml`; returns the card.

    Raises OSError where the folder cannot be written.
    """
    write_tensors(tensors, folder / WEIGHTS)
    texts = {README: markdown(card)} | ({RECIPE: recipe_yaml(card)} if card.config else {})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    digests = {name: sha256_of(folder / name) for name in texts}
    card = card.model_copy(update={"weights_sha256": sha256_of(folder / WEIGHTS), "files_sha256": digests})
    (folder / CARD).write_text(card.model_dump_json(indent=1), encoding="utf-8")
    return card


def read_model(folder: Path, uri: str) -> Model:
    """Read a folder of `write_model`; no code of it runs.

    Raises UserError where it is not one, is of a newer format, or a file of it is not the one that its card names.
    """
    try:
        card = parse_card((folder / CARD).read_bytes(), uri)
        _check(
            folder, {WEIGHTS: card.weights_sha256} | {str(name): its for name, its in card.files_sha256.items()}, uri
        )
    except OSError as error:
        raise UserError(f"{uri} is not a model of this program: {error}") from error
    try:
        return _ready(load_file(folder / WEIGHTS), card, uri)
    except SafetensorError as error:
        raise UserError(f"{uri}: {WEIGHTS} cannot be read: {error}") from error


def load_model(uri: str, tracking: str) -> Model:
    """A model by `models:/name@alias`, `runs:/id/model`, the address of a run's checkpoints, or a folder.

    Raises:
        UserError: where the address names no model of this program.
        ServiceError: where the service behind it does not answer.

    """
    if uri.startswith(("models:/", "runs:/")):
        with _downloaded(uri, tracking) as folder:
            return read_model(folder, uri)
    if (Path(uri) / CARD).is_file():
        return read_model(Path(uri), uri)
    return _from_checkpoint(uri)


def _check(folder: Path, digests: dict[str, str], uri: str) -> None:
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            raise UserError(f"{uri}: {name} does not have the SHA-256 that its card names. The model is refused.")


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
            f"{uri} is no model: there is no {CARD} and no committed checkpoint. "
            "Allowed: models:/name@alias, runs:/id/model, a checkpoint's address, a model's folder."
        )
    found = checkpoints.load(store, name or known[-1])
    config = RunConfig.model_validate(found.config)
    card = ModelCard(
        name=config.name,
        model=config.model,
        data=config.data,
        metrics=found.metrics,
        run_id=base.rpartition("/")[2],
        code_version=found.code_version,
        config=found.config,
    )
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
        cards = list(Path(scratch).rglob(CARD))
        if len(cards) != 1:
            raise UserError(f"{uri} is not a model of this program: it holds {len(cards)} files named {CARD}, not one.")
        yield cards[0].parent
