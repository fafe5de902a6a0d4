"""A trial with workers of its own: Ray Train inside of Ray Tune, and the room on the cluster that it must give back."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.on_ray import board
from pipelines.on_ray.desk import open_desk
from pipelines.on_ray.driver import trainer_arguments
from pipelines.on_ray.work import Work

_PATIENCE_S = 30.0  # with a driver that is behind: what is not told is not given back


def train_with_workers(work: Work) -> None:
    """Train in a process that Ray Tune has started; rank 0's reports are the trial's. A lost worker ends it."""
    callbacks = [TuneReportCallback(), _Room(work.queue)]
    _Trainer(**trainer_arguments(work, open_desk(), max_failures=0, callbacks=callbacks)).fit()


class _Room(WorkerGroupCallback):
    """Tells the driver which placement group the workers are in: it outlives a controller that Ray Tune ends."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Workers run."""
        room = worker_group.get_worker_group_state().placement_group_handle.placement_group
        board.send(self._queue, {"room": room}, _PATIENCE_S)


class _Trainer(TorchTrainer):
    """Ray's trainer without its own cleaner, which asks a dashboard, and without one waits for ever beside the next."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            each for each in super()._create_default_callbacks() if not isinstance(each, PlacementGroupCleanerCallback)
        ]
