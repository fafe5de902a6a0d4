"""The driver's side of a run: refuse what cannot work, have the workers train, register what they trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from pipelines import registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import RunConfig, parse_config
from pipelines.data.loaders import check_data
from pipelines.data.manifest import Manifest, ensure_verified
from pipelines.data.mixing import check_pairs
from pipelines.data.staging import data_folder
from pipelines.errors import ServiceError
from pipelines.home import data_address, default_store, home
from pipelines.loop.gradients import check_gradients
from pipelines.loop.profile import PROFILES
from pipelines.network import build_network, build_optimizer
from pipelines.on_ray import driver as ray_driver
from pipelines.progress import Say
from pipelines.report import figures
from pipelines.storage import Store, check_writable, open_store
from pipelines.teacher import build_criterion
from pipelines.tracking import runs as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import tracked

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRACKING_WAIT_S = 600.0


def train(config: RunConfig, *, resume: bool, say: Say) -> dict[str, Any]:
    """Train a recipe to its end and register the model; returns the summary that `--json` prints.

    Everything that can be refused is refused before a worker starts.

    Raises:
        UserError: for data, a network or a resume that the configuration does not fit.
        ServiceError: where a service, a disk or a worker fails for good.

    """
    config, folder, manifest = prepare(config, say)
    client = tracking.connect(str(config.tracking.uri))
    with tracked(client, config, manifest, resume=resume, say=say) as run:
        store = open_store(f"{config.checkpoint.uri}/{run.id}", proven=True)
        steps = config.total_steps(manifest.splits["train"].count)
        metrics = ray_driver.fit(config, run, folder, steps, say)
        _wait_for_tracking(config, run.journal, store)
        with tracking.explained(str(config.tracking.uri)):
            _publish_figures(client, run.id)
            _publish_profiles(client, run.id, store)
            uri = registry.publish(client, config, manifest, run.id, store, config.tracking.register_as, say=say)
    newest = checkpoints.committed(store)[-1]
    return {**metrics, "run_id": run.id, "model": uri, "checkpoint": f"{store.uri}/{newest}"}


class Prepared(NamedTuple):
    """A run that can start: its resolved configuration, and its data on this machine."""

    config: RunConfig
    folder: Path
    manifest: Manifest


def prepare(config: RunConfig, say: Say) -> Prepared:
    """Fetch and verify the data, and refuse what cannot be trained here.

    Raises UserError for data or a network that the configuration does not fit; ServiceError where Ray or the store of
    checkpoints cannot be used.
    """
    config = resolve(config)
    folder, manifest = find_data(config, say)
    check_network(config)
    ray_driver.check_address()
    check_writable(open_store(str(config.checkpoint.uri)), home())
    return Prepared(config, folder, manifest)


def find_data(config: RunConfig, say: Say) -> tuple[Path, Manifest]:
    """Stage and verify the data of a resolved recipe. Raises UserError where they, batches or loader do not fit."""
    folder = data_folder(config.data.uri, config.data.dataset, say)
    manifest = ensure_verified(
        folder, expect_name=config.data.dataset, expect_classes=config.model.num_classes, say=say
    )
    check_data(folder, config.data, config.model, world=config.run.most_workers, say=say)
    for world in config.run.worlds:
        check_pairs(config.data, world)
    return folder, manifest


def check_network(config: RunConfig) -> nn.Module:
    """Build what a resolved recipe trains, with its optimiser and its loss; raises UserError where one cannot be."""
    network = build_network(config.model)
    check_gradients(config.run.gradients, network)
    build_optimizer(network, config.optim)
    build_criterion(config, network, torch.device("cpu"))
    return network


def resolve(config: RunConfig) -> RunConfig:
    """The tree with its addresses filled in, absolute, so that a worker anywhere reads the same."""
    tree = config.model_dump(mode="json")
    tree["data"]["uri"] = data_address(config.data.uri, config.data.dataset)
    if weights := config.loss.distill.weights:
        tree["loss"]["distill"]["weights"] = str(Path(weights).expanduser().absolute())
    tree["checkpoint"]["uri"] = open_store(config.checkpoint.uri or f"{default_store()}/checkpoints").uri
    tree["tracking"]["uri"] = tracking.tracking_uri(config.tracking.uri)
    return parse_config(tree, origin=config.name)


def _wait_for_tracking(config: RunConfig, journal: Journal, store: Store) -> None:
    """Wait until MLflow has all metrics, since figures and the model's card are made of them."""
    if not journal.flush(_TRACKING_WAIT_S):
        raise ServiceError(
            f"The run is trained, and MLflow at {config.tracking.uri} has not taken its metrics for "
            f"{_TRACKING_WAIT_S / 60:.0f} minutes. The last checkpoint is in {store.uri}. When MLflow answers again, "
            "the same command with --resume registers the model."
        )


def _publish_profiles(client: MlflowClient, run_id: str, store: Store) -> None:
    """Log what workers have traced."""
    with tempfile.TemporaryDirectory() as folder:
        for key in store.keys(PROFILES):
            path = Path(folder, key.removeprefix(PROFILES))
            store.get(key, path)
            client.log_artifact(run_id, str(path), PROFILES.rstrip("/"))


def _publish_figures(client: MlflowClient, run_id: str) -> None:
    """Log a figure of everything that the run has measured."""
    measured = client.get_run(run_id).data.metrics
    rows = tracking.history(client, run_id, ["train/loss", "train/top1", "val/loss", "val/top1"])
    tracking.log_figure(client, run_id, figures.curves(rows), "curves")
    for name, (draw, prefix) in figures.BY_PREFIX.items():
        keys = [key for key in measured if key.startswith(prefix)]
        if keys:
            tracking.log_figure(client, run_id, draw(tracking.history(client, run_id, keys)), name)
