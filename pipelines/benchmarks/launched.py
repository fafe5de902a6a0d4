"""One launch of `agmm bench ray`: the loop of a run under Ray Train as `agmm train` has it, or a rank under torchrun.

Either way rows that rank 0 logs go to a file, one JSON list a line: the clock and the metrics.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pipelines.config import RunConfig
from pipelines.data.manifest import load_manifest
from pipelines.recipe import load_recipe

if TYPE_CHECKING:
    from pipelines.tracking.lifecycle import Opened

Row = dict[str, float]
WORKER = "worker"  # files named so hold the process id of one


def under_ray(config: RunConfig, rows: Path) -> None:
    """The driver of a run on a Ray of its own; its journal is the file."""
    from pipelines.on_ray.driver import fit

    journal = SimpleNamespace(log=partial(_note, rows), tag=lambda _key, _value: None)
    run = cast("Opened", SimpleNamespace(id="ray", journal=journal))
    fit(config, run, Path(str(config.data.uri)), _steps(config), _say, pinned_worker)


def pinned_worker(job: dict[str, Any]) -> dict[str, float]:
    """What Ray Train runs in each worker, on a core of its own."""
    import ray.train

    from pipelines.on_ray.worker import ray_worker

    _settle(ray.train.get_context().get_world_rank(), Path(job["work"].config.checkpoint.uri).parent)
    return ray_worker(job)


def under_torchrun(config: RunConfig, rows: Path) -> None:
    """A rank of a run that nobody watches, on a core of its own; what it says goes to stderr."""
    import torch
    import torch.distributed as dist

    from pipelines.loop.worker import run
    from pipelines.loop.world import Outside, World
    from pipelines.storage import open_store

    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    _settle(world.rank, rows.parent)
    outside = Outside(
        store=open_store(f"{config.checkpoint.uri}/torchrun"),
        log=partial(_note, rows),
        progress=lambda item: _say(str(item)),
        on_epoch=lambda _: None,
    )
    run(config, world, outside, Path(str(config.data.uri)), "bench")
    dist.barrier()  # a rank that left first would abort those that still talk to it
    dist.destroy_process_group()


def _settle(rank: int, folder: Path) -> None:
    """Keep this process to one core, a rank to each where there are enough, and write down which process it is."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cores[rank % len(cores)]})
    (folder / f"{WORKER}-{rank}").write_text(str(os.getpid()))


def _note(rows: Path, row: Row, _step: int) -> None:
    with rows.open("a", encoding="ascii") as file:
        file.write(json.dumps([time.time(), row]) + "\n")


def _steps(config: RunConfig) -> int:
    return config.total_steps(load_manifest(str(config.data.uri)).splits["train"].count)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(side: str, recipe: str, rows: str) -> None:
    """Be the one that a launch starts."""
    {"ray": under_ray, "torchrun": under_torchrun}[side](load_recipe(recipe), Path(rows))


if __name__ == "__main__":
    from pipelines.benchmarks import launched  # what belongs to __main__ Ray would send by value

    launched.main(*sys.argv[1:])
