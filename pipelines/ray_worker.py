"""The function that Ray Train runs in each worker: it joins the services to the loop of `pipelines.worker`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from agmm.loop import NotFinite
from pipelines import board
from pipelines.config import RunConfig
from pipelines.data.staging import staged
from pipelines.errors import ServiceError, UserError
from pipelines.pulse import Pulse
from pipelines.storage import open_store
from pipelines.worker import run
from pipelines.world import Outside, World

_PATIENCE_S = 3.0  # with a driver that is behind, before a row is dropped


def ray_worker(job: dict[str, Any]) -> dict[str, float]:
    """Train one rank of a run. `job`: config, run_id, folder, code_version, and the board's queue.

    A foreseen failure, which a restart would meet again, ends the run through the board. Anything else is said, and
    Ray Train restarts the workers.
    """
    tell = partial(board.send, job["queue"])
    try:
        return _train(job, tell)
    except (NotFinite, UserError, ServiceError) as error:
        tell({"failed": f"{type(error).__name__}: {error}"})
        raise
    except Exception as error:
        tell({"say": f"a worker stopped, the run starts again from its last checkpoint: {error!r}"[:500]})
        raise


def _train(job: dict[str, Any], tell: Any) -> dict[str, float]:
    import ray.train
    from ray.train.torch import get_device

    config = RunConfig.model_validate(job["config"])
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    outside = Outside(
        store=open_store(f"{config.checkpoint.uri}/{job['run_id']}"),
        log=partial(_log, job["queue"]),
        progress=tell,
        on_epoch=lambda metrics: ray.train.report(metrics),
        pulse=Pulse(world.rank),
    )
    with outside.pulse.beating(tell):
        folder = staged(str(config.data.uri), job["folder"], say=lambda line: tell({"say": line}))
        return run(config, world, outside, folder, job["code_version"])


def _log(queue: Any, row: dict[str, float], step: int) -> None:
    """Hand a row to the driver, whose journal keeps it: MLflow costs a step nothing."""
    board.send(queue, {"metrics": row, "step": step}, _PATIENCE_S)
