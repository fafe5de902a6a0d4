"""The function that Ray Train runs in each worker: it joins the services to the loop of `pipelines.loop.worker`."""

from __future__ import annotations

import os
import traceback
from functools import partial
from typing import Any

from pipelines.data import cache
from pipelines.data.staging import staged
from pipelines.errors import Fenced
from pipelines.faults import fault_point
from pipelines.loop.pulse import CACHE_BYTES, Pulse
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.on_ray import board
from pipelines.on_ray.causes import brief, foreseen
from pipelines.on_ray.desk import Ear
from pipelines.on_ray.rank_log import RankLog
from pipelines.on_ray.startup import Startup, describe
from pipelines.on_ray.work import Work
from pipelines.secrets import redacted
from pipelines.storage import open_store

_PATIENCE_S = 3.0  # with a driver that is behind, before a row is dropped
_FAILURE_PATIENCE_S = 30.0  # the same before the reason of a failure is, without which a restart meets it again


def ray_worker(job: dict[str, Any]) -> dict[str, float]:
    """Train one rank of a run. `job`: the `work`, and the `desk`.

    A foreseen failure, which a restart would meet again, ends the run through the board. Anything else is said, and
    Ray Train restarts the workers.
    """
    work: Work = job["work"]
    tell = partial(board.send, work.queue)
    fail = partial(tell, patience_s=_FAILURE_PATIENCE_S)
    try:
        return _train(work, job["desk"])
    except Fenced as error:
        # overtaken by a restart of its own run, it is a leftover that nobody misses
        if error.own:
            tell({"say": str(error)})
        else:
            fail({"failed": f"Fenced: {error}"})
        raise
    except Exception as error:
        if reason := foreseen(error):
            fail({"failed": reason})
        else:
            tell({"say": f"a worker stopped ({brief(error)}); the run starts again, run.max_failures times at most"})
        raise


def _train(work: Work, desk: Any) -> dict[str, float]:
    import ray.train
    from ray.train.torch import get_device

    fault_point("worker.start")
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    heard = _listening(desk, world, partial(board.send, work.queue)) if world.rank == 0 else {}
    return train_rank(work, world, on_epoch=lambda metrics: ray.train.report(metrics), **heard)


def train_rank(work: Work, world: World, **more: Any) -> dict[str, float]:
    """Join the services to the loop for one rank; `more` are further fields of its `Outside`, `on_epoch` at least."""
    if work.config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    pulse = Pulse(world.rank)
    log = RankLog(work.run_id, world.rank, pulse)
    tell = log.listening(partial(board.send, work.queue))
    outside = Outside(
        store=open_store(f"{work.config.checkpoint.uri}/{work.run_id}", proven=True),  # by the driver
        log=partial(_log, work.queue),
        progress=tell,
        session=work.session,
        tag=lambda key, value: tell({"tag": key, "value": value}),
        pulse=pulse,
        **more,
    )
    outside.mark("services")
    with outside.pulse.beating(tell):
        outside.pulse.phase("stage")
        folder = staged(str(work.config.data.uri), str(work.folder), say=lambda line: tell({"say": line}))
        if folder.parent == cache.cache_dir():
            outside.pulse.notes[CACHE_BYTES] = sum(entry.allocated for entry in cache.entries(folder.parent))
        outside.pulse.phase("start")
        try:
            return run(work.config, world, outside, folder, work.code_version)
        except Exception:
            log.error("stopped:\n%s", redacted(traceback.format_exc()))  # noqa: TRY400, which would show all
            raise


def _listening(desk: Any, world: World, tell: Any) -> dict[str, Any]:
    """Rank 0's part of the outside: it may be asked to save and stop, and says how its start went."""
    ear = Ear(desk)
    startup = Startup(lambda parts: tell({"say": describe(parts, ear.seconds(), world.size)}))
    return {"stop_requested": ear.asked, "saved": ear.saved, "mark": startup.mark}


def _log(queue: Any, row: dict[str, float], step: int) -> None:
    """Hand a row to the driver, whose journal keeps it: MLflow costs a step nothing."""
    board.send(queue, {"metrics": row, "step": step}, _PATIENCE_S)
