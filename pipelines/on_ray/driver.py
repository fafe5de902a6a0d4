"""The workers of a run under Ray Train, on the Ray of RAY_ADDRESS or one of the run's own on this machine."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.errors import ServiceError, UserError, failure_of
from pipelines.home import default_store, home
from pipelines.on_ray import board
from pipelines.on_ray.causes import brief, cause
from pipelines.on_ray.metrics import Operators, ray_metrics
from pipelines.on_ray.own import own_ray
from pipelines.on_ray.watchdog import Watchdog
from pipelines.on_ray.work import Work
from pipelines.progress import Say
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import Opened
from pipelines.tracking.process import new_session
from pipelines.version import code_version

_RAY_TRAIN = {
    "HEALTH_CHECK_INTERVAL_S": "0.25",  # a lost worker is found, and a report passes, within this, not within 2 s
    "PREEMPTION_POLL_INTERVAL_S": "1",  # a notice may leave half a minute
    "WORKER_HEALTH_CHECK_TIMEOUT_S": "180",  # a worker whose process stands still is given up and the run restarted
    "WORKER_GROUP_START_TIMEOUT_S": "5",  # for room alone; then it looks again how many workers there is room for
}
# For other ranks, which may be staging their data set. The watchdog names who hangs, Ray Train finds who is dead.
_COLLECTIVE_S = 12 * 3600


def check_address() -> None:
    """Raise ServiceError where RAY_ADDRESS names a head that does not answer: Ray itself would wait for minutes."""
    host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # none, `auto`, or a kind of address that Ray checks itself
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ServiceError(
            f"No Ray head answers at RAY_ADDRESS={host}:{port}: {error.strerror or error}. "
            "Start one (`agmm up`), or unset RAY_ADDRESS to run on this machine."
        ) from error


Worker = Callable[[dict[str, Any]], dict[str, float]]  # what Ray Train runs in each of them


def fit(
    config: RunConfig, run: Opened, folder: Path, steps: int, say: Say, worker: Worker | None = None
) -> dict[str, float]:
    """Run the workers until they are done; returns rank 0's metrics. What they measure goes to the run's journal.

    worker: `ray_worker` by default, or something around it.

    Raises:
        UserError: where the devices asked for are not there.
        Fenced: where a newer attempt of the run has taken over.
        ServiceError: where a worker fails in a foreseen way, or too many workers are lost.

    """
    watched = board.Board(
        {
            "metrics": lambda item: run.journal.log(item["metrics"], item["step"]),
            "tag": lambda item: run.journal.tag(item["tag"], item["value"]),
        }
    )
    cpus = config.run.cpus_per_worker
    needed, wanted = config.run.least_workers * cpus, config.run.most_workers * cpus
    try:
        with (
            connected(needed=needed, wanted=wanted, say=say),
            board.shown(watched, steps),
            _watchdog(watched, run.journal),
        ):
            _tell_operators(watched, run.id, config.name)
            return _fit(config, run.id, folder, watched, say, worker)
    except (KeyboardInterrupt, SystemExit) as ended:  # a signal before Ray Train runs may come as a SystemExit
        if watched.failure:  # the board's own interrupt, see `board`
            raise failure_of(watched.failure) from None
        raise KeyboardInterrupt from ended


def _watchdog(watched: board.Board, journal: Journal) -> AbstractContextManager[None]:
    def say(line: str) -> None:
        board.send(watched.queue, {"say": line})  # a progress bar may be there, so the board draws it

    dog = Watchdog(say, journal.tag)
    watched.listen("pulse", dog.take)
    return dog.watching()


def _tell_operators(watched: board.Board, run_id: str, recipe: str) -> None:
    operators = Operators(ray_metrics(run_id, recipe))
    for kind, listener in (("metrics", operators.row), ("tag", operators.tag), ("pulse", operators.pulse)):
        watched.listen(kind, listener)


def _fit(
    config: RunConfig, run_id: str, folder: Path, watched: board.Board, say: Say, worker: Worker | None
) -> dict[str, float]:
    from pipelines.on_ray.desk import open_desk
    from pipelines.on_ray.ends import Interrupt, Trainer, head_watched

    desk = open_desk()
    work = Work(config, run_id, new_session(), folder, code_version(), watched.queue)
    trainer = Trainer(
        on_interrupt=Interrupt(watched, desk, config.checkpoint.grace, say),
        **trainer_arguments(work, desk, max_failures=config.run.max_failures, worker=worker),
    )
    with head_watched(watched):
        return _result_of(trainer)


def trainer_arguments(
    work: Work, desk: Any, *, max_failures: int, callbacks: Sequence[Any] = (), worker: Worker | None = None
) -> dict[str, Any]:
    """What Ray's TorchTrainer trains a run with; for use inside a Ray that runs. `callbacks` come beside our own."""
    from ray.train.torch import TorchConfig

    from pipelines.on_ray.worker import ray_worker

    gpu = device_of(work.config) == "cuda"
    return {
        "train_loop_per_worker": worker or ray_worker,
        "train_loop_config": {"work": work, "desk": desk},
        "torch_config": TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_COLLECTIVE_S),
        "scaling_config": _scaling(work.config, gpu),
        "run_config": _ray_run(work, desk, max_failures, callbacks),
    }


def _scaling(config: RunConfig, gpu: bool) -> Any:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=config.run.workers,
        use_gpu=gpu,
        resources_per_worker={"CPU": config.run.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        elastic_resize_monitor_interval_s=config.run.resize_every,
    )


def _ray_run(work: Work, desk: Any, max_failures: int, callbacks: Sequence[Any]) -> Any:
    """How Ray Train keeps the run going: preempted nodes do not count among the failures."""
    from ray.train import FailureConfig
    from ray.train import RunConfig as RayRunConfig

    from pipelines.on_ray.guard import Guard

    config = work.config
    guard = Guard(desk, work.queue, least=config.run.least_workers, grace=config.checkpoint.grace)
    return RayRunConfig(
        name=work.run_id.replace("/", "-"),
        failure_config=FailureConfig(max_failures=max_failures, max_preemption_failures=-1),
        callbacks=[guard, *callbacks],
        **ray_storage(),
    )


def _result_of(trainer: Any) -> dict[str, float]:
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, OwnerDiedError, RayActorError, RpcError
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise failure_of(cause(error)) from error
    except (RayActorError, RpcError, LocalRayletDiedError, NodeDiedError, OwnerDiedError) as error:
        raise ServiceError(
            f"Ray's controller of the run is gone, with the Ray head or on its own ({brief(error)}). See that Ray "
            "answers (`agmm status`, `agmm doctor --only ray`); the same command with --resume then goes on from the "
            "last checkpoint."
        ) from error


def device_of(config: RunConfig) -> str:
    """`cuda` where every worker can have a GPU of the cluster, by default. Raises UserError for what is not there."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if config.run.device == "cpu" or (config.run.device == "auto" and gpus == 0):
        return "cpu"
    if gpus < config.run.least_workers:
        raise UserError(
            f"run.workers is {config.run.workers} with run.device={config.run.device}, and Ray has {gpus:.0f} GPUs. "
            "Set run.workers to at most that, or run.device=cpu."
        )
    return "cuda"


@contextmanager
def connected(*, needed: int, wanted: int, say: Say) -> Iterator[None]:
    """Ray, while the context lasts: the one of RAY_ADDRESS, or one of the run's own on this machine.

    It has `wanted` CPUs if it is the run's own; of another's it is said where it has less than what is `needed`.

    Raises ServiceError where Ray cannot be reached or does not start.
    """
    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(f"RAY_TRAIN_{name}", value)
    import ray

    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else own_ray(max(os.cpu_count() or 1, wanted))
    say(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    # stdout is for the result; what workers print is in Ray's session folder, what they have to say comes to the board
    with redirect_stdout(sys.stderr):
        try:
            _connect(address, options)
            if (there := ray.cluster_resources().get("CPU", 0)) < needed:
                say(f"waiting for {needed} CPUs: the Ray cluster has {there:.0f}")
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None, options: dict[str, Any]) -> None:
    import ray

    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except ConnectionError as error:
        raise ServiceError(f"Cannot reach Ray at {address}: {error}. `agmm up` starts one.") from error
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no type of its own for it
            raise
        raise ServiceError(
            "Ray did not start on this machine within its time; other work may keep the processors busy. Try again "
            "with --resume."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray's own handler would print a native stack and leave


def ray_storage() -> dict[str, Any]:
    """Where Ray Train and Ray Tune keep the state of their controllers; checkpoints are ours."""
    store = default_store()
    if not store.startswith("s3://"):
        return {"storage_path": str(home() / "ray")}
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "")
    # the variable is boto3's: Arrow knows only the system's own authorities
    authority = {"tls_ca_file_path": bundle} if (bundle := os.environ.get("AWS_CA_BUNDLE")) else {}
    filesystem = S3FileSystem(**authority, **({"endpoint_override": endpoint} if endpoint else {}))
    return {"storage_path": f"{store.removeprefix('s3://')}/ray", "storage_filesystem": filesystem}
