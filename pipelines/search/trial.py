"""One trial: a training run with drawn values, in a process that Ray Tune starts, alone or with workers of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import Checkpoint

from pipelines.errors import ServiceError
from pipelines.faults import fault_point
from pipelines.loop.world import World
from pipelines.on_ray import board
from pipelines.on_ray.causes import cause, foreseen
from pipelines.on_ray.work import Work
from pipelines.search.space import applied

_PATIENCE_S = 30.0  # with a board that is behind: a trial of which it does not know cannot be found to hang
FAILED = "failed"  # the key of a report that ends a trial for good, with the reason


@dataclass(frozen=True)
class Labelled:
    """A board's queue as one trial writes to it: the driver hears what any run tells, and of which trial."""

    queue: Any
    number: int

    def put(self, item: Mapping[str, Any], block: bool = True, timeout: float | None = None) -> None:
        """As `ray.util.queue.Queue.put`."""
        self.queue.put({"trial": self.number, "item": dict(item)}, block=block, timeout=timeout)


def address_of(search_id: str, number: int) -> str:
    """Where a trial's checkpoints are, below `checkpoint.uri`."""
    return f"{search_id}/trial-{number:04d}"


def train_trial(suggestion: Mapping[str, Any], work: Work) -> None:
    """Train the recipe of `work` with the suggestion's values, and report each epoch to Ray Tune.

    suggestion: the `number` of the trial and its `values` by name. A trial that began before goes on from its last
    checkpoint. A failure that would come again is reported as `failed`; any other is raised, and Ray Tune tries again.
    """
    number = suggestion["number"]
    in_population = work.config.tune is not None and work.config.tune.scheduler == "pbt"
    work = replace(
        work,
        config=applied(work.config, suggestion["values"]),
        run_id=address_of(work.run_id, number),
        queue=Labelled(work.queue, number),
    )
    board.send(work.queue, {"actor": ray.get_runtime_context().current_actor}, _PATIENCE_S)
    fault_point(f"trial.{number}")
    try:
        _train(work, in_population)
    except Exception as error:
        if not (reason := _for_good(error)):
            raise
        tune.report({FAILED: reason})


def _train(work: Work, in_population: bool) -> None:
    if work.config.run.most_workers > 1:
        from pipelines.search.workers import train_with_workers

        train_with_workers(work)
        return
    from pipelines.on_ray.worker import train_rank

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    report = _report_committed if in_population else tune.report
    on_epoch = partial(_report, report, work.queue.number)
    train_rank(work, World(0, 1, device), on_epoch=on_epoch, commits_epochs=in_population)


def _report(report: Callable[[Any], None], number: int, metrics: dict[str, float]) -> None:
    fault_point(f"trial.{number}.report")
    report(metrics)


def _report_committed(metrics: dict[str, float]) -> None:
    """Report an epoch with a checkpoint for Ray, whose pbt clones no trial without one: it holds nothing.

    The weights are where the loop has committed them, from which `population` has another trial go on.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "committed").touch()
        tune.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _for_good(error: Exception) -> str | None:
    """What to say of a failure that the same values would meet again; of a service that is away a trial may recover."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if any(_of_its_own(failure) for failure in failures.values()):
        return cause(error)
    return _of_its_own(error)


def _of_its_own(error: BaseException) -> str | None:
    return None if isinstance(error, ServiceError) else foreseen(error)
