"""The driver's side of a run: refuse what cannot work, start the workers, register what they trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmm.loop import NotFinite
from pipelines import board, registry, tracking
from pipelines import checkpoint as checkpoints
from pipelines.config import RunConfig, config_differences, parse_config
from pipelines.data.manifest import Manifest, ensure_verified
from pipelines.errors import ServiceError, UserError
from pipelines.home import data_folder, default_store, home
from pipelines.report import figures
from pipelines.storage import Store, check_writable, open_store
from pipelines.version import code_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

Say = Callable[[str], None]


def train(config: RunConfig, *, resume: bool, say: Say) -> dict[str, Any]:
    """Train a recipe to its end and register the model; returns the summary that `--json` prints.

    Everything that can be refused is refused before a worker starts.

    Raises:
        UserError: for data, a network or a resume that the configuration does not fit.
        ServiceError: where a service, a disk or a worker fails for good.

    """
    config = _resolve(config)
    folder = data_folder(config.data.uri, config.data.dataset)
    manifest = ensure_verified(
        folder, expect_name=config.data.dataset, expect_classes=config.model.num_classes, say=say
    )
    _refuse_impossible_network(config)
    client = tracking.connect(str(config.tracking.uri))
    check_writable(open_store(str(config.checkpoint.uri)), home())
    with _tracked(client, config, manifest, resume, say) as (run_id, store):
        metrics = _fit(config, run_id, folder, manifest, say)
        uri = _publish(client, config, manifest, run_id, store)
    say(f"run {run_id} finished: {tracking.describe_run(client, run_id)}")
    newest = checkpoints.committed(store)[-1]
    return {**metrics, "run_id": run_id, "model": uri, "checkpoint": f"{store.uri}/{newest}"}


def _resolve(config: RunConfig) -> RunConfig:
    """The tree with its addresses filled in, absolute, so that a worker anywhere reads the same."""
    tree = config.model_dump(mode="json")
    tree["data"]["uri"] = str(data_folder(config.data.uri, config.data.dataset))
    tree["checkpoint"]["uri"] = open_store(config.checkpoint.uri or f"{default_store()}/checkpoints").uri
    tree["tracking"]["uri"] = tracking.tracking_uri(config.tracking.uri)
    return parse_config(tree, origin=config.name)


def _refuse_impossible_network(config: RunConfig) -> None:
    from pipelines.network import build_network

    build_network(config.model)


@contextmanager
def _tracked(
    client: MlflowClient, config: RunConfig, manifest: Manifest, resume: bool, say: Say
) -> Iterator[tuple[str, Store]]:
    """An MLflow run around the work, ended in the state that the work ended in; and the store of its checkpoints."""
    with tracking.explained(str(config.tracking.uri)):
        run_id = tracking.find_run(client, config) if resume else _open(client, config, manifest)
    store = open_store(f"{config.checkpoint.uri}/{run_id}")
    say(f"{'resuming' if resume else 'started'} run {run_id}, checkpoints in {store.uri}")
    try:
        if resume:
            _refuse_changed_config(store, config)
        yield run_id, store
    except KeyboardInterrupt:
        tracking.close_run(client, run_id, "KILLED", "interrupted")
        raise
    except BaseException as error:
        tracking.close_run(client, run_id, "FAILED", f"{type(error).__name__}: {error}")
        raise
    tracking.close_run(client, run_id, "FINISHED")


def _open(client: MlflowClient, config: RunConfig, manifest: Manifest) -> str:
    digests = {f"agmm.data.{split}": info.content_digest for split, info in manifest.splits.items()}
    return tracking.open_run(client, config, {"agmm.code_version": code_version(), **digests})


def _refuse_changed_config(store: Store, config: RunConfig) -> None:
    names = checkpoints.committed(store)
    if not names:
        return
    before = parse_config(checkpoints.load(store, names[-1]).config, origin=f"{store.uri}/{names[-1]}")
    if changed := config_differences(before, config):
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(f"The run that would be resumed had another configuration:\n{lines}\nStart a new run instead.")


def _fit(config: RunConfig, run_id: str, folder: Path, manifest: Manifest, say: Say) -> dict[str, float]:
    """Run the workers under Ray Train until they are done; returns rank 0's metrics."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.ray_worker import ray_worker

    with _ray(config, say), board.shown(_steps(config, manifest)) as queue:
        device = _device(config)
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "run_id": run_id,
                "folder": str(folder),
                "code_version": code_version(),
                "queue": queue,
            },
            torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.run.workers,
                use_gpu=device == "cuda",
                resources_per_worker={"CPU": config.run.cpus_per_worker, **({"GPU": 1} if device == "cuda" else {})},
            ),
            run_config=RayRunConfig(
                name=run_id,
                failure_config=FailureConfig(max_failures=config.run.max_failures),
                **_ray_storage(),
            ),
        )
        return _result_of(trainer)


def _result_of(trainer: Any) -> dict[str, float]:
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        result = trainer.fit()
    except SystemExit as ended:  # how Ray Train answers Ctrl-C, after it has stopped the workers
        raise KeyboardInterrupt from ended
    except TrainingFailedError as error:
        raise ServiceError(f"Training failed. {_cause(error)}") from error
    return result.return_value


def _cause(error: Exception) -> str:
    """What foreseen errors of workers say; for anything else Ray's report with the workers' tracebacks."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if failures and all(isinstance(failure, (NotFinite, UserError, ServiceError)) for failure in failures.values()):
        return "\n".join(f"{type(failure).__name__}: {failure}" for _, failure in sorted(failures.items()))
    return str(error)


def _device(config: RunConfig) -> str:
    """`cuda` where every worker can have a GPU of the cluster, by default; a `cuda` that is not there is refused."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if config.run.device == "cuda" and gpus < config.run.workers:
        raise UserError(
            f"run.device is cuda and run.workers {config.run.workers}, but Ray has {gpus:.0f} GPUs. "
            "Set run.device=cpu, or fewer workers."
        )
    if config.run.device != "auto":
        return config.run.device
    return "cuda" if gpus >= config.run.workers else "cpu"


def _steps(config: RunConfig, manifest: Manifest) -> int:
    steps = config.optim.epochs * (manifest.splits["train"].count // config.data.batch_size)
    return min(steps, config.optim.max_steps or steps)


@contextmanager
def _ray(config: RunConfig, say: Say) -> Iterator[None]:
    """A connection to the Ray of RAY_ADDRESS, or a Ray of this run's own on this machine."""
    # how often Ray Train looks at its workers: a lost one is found, and a report passes, within this, not within 2 s
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    import ray

    needed = config.run.workers * config.run.cpus_per_worker
    address = os.environ.get("RAY_ADDRESS")
    say(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    own = {"num_cpus": max(os.cpu_count() or 1, needed), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if not address and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would listen on the host's own address
    # stdout is for the result; what workers print is in Ray's session folder, what they have to say comes as progress
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
        except ConnectionError as error:
            raise ServiceError(
                f"Cannot reach Ray at {address}: {error}. Start it (`agmm up`) or unset RAY_ADDRESS."
            ) from error
        try:
            if (there := ray.cluster_resources().get("CPU", 0)) < needed:
                say(f"waiting for {needed} CPUs: the Ray cluster has {there:.0f}")
            yield
        finally:
            ray.shutdown()


def _ray_storage() -> dict[str, Any]:
    """Where Ray Train keeps the state of its controller; checkpoints are ours."""
    store = default_store()
    if not store.startswith("s3://"):
        return {"storage_path": str(home() / "ray")}
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "")
    filesystem = S3FileSystem(endpoint_override=endpoint) if endpoint else S3FileSystem()
    return {"storage_path": f"{store.removeprefix('s3://')}/ray", "storage_filesystem": filesystem}


def _publish(client: MlflowClient, config: RunConfig, manifest: Manifest, run_id: str, store: Store) -> str:
    """Log figures, and register the model of the last checkpoint; returns its address."""
    keys = [key for key in client.get_run(run_id).data.metrics if key.startswith("flips/")]
    tracking.log_figure(client, run_id, figures.flips(tracking.history(client, run_id, keys)), "flips")
    rows = tracking.history(client, run_id, ["train/loss", "train/top1", "val/loss", "val/top1"])
    tracking.log_figure(client, run_id, figures.curves(rows), "curves")
    last = checkpoints.load(store, checkpoints.committed(store)[-1])
    card = registry.ModelCard(
        name=config.name,
        model=config.model,
        data=config.data,
        classes=list(manifest.classes),
        data_digest=manifest.splits["train"].content_digest,
        run_id=run_id,
        code_version=code_version(),
        metrics=last.metrics,
    )
    return registry.register(client, card, last.model, config.tracking.register_as)
