"""The function that Ray Train runs in each worker: it joins the services to the loop of `pipelines.worker`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pipelines import board, tracking
from pipelines.config import RunConfig
from pipelines.storage import open_store
from pipelines.worker import Outside, World, run


def ray_worker(job: dict[str, Any]) -> dict[str, float]:
    """Train one rank of a run. `job`: config, run_id, folder, code_version, and the queue for progress."""
    import ray.train
    from ray.train.torch import get_device

    config = RunConfig.model_validate(job["config"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    client = tracking.connect(str(config.tracking.uri)) if world.rank == 0 else None
    outside = Outside(
        store=open_store(f"{config.checkpoint.uri}/{job['run_id']}"),
        log=partial(tracking.log_metrics, client, job["run_id"]),
        progress=partial(board.send, job["queue"]),
        on_epoch=lambda metrics: ray.train.report(metrics),
    )
    return run(config, world, outside, Path(job["folder"]), job["code_version"])
