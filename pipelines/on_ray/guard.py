"""On Ray Train's controller: rank 0 saves before workers are ended on purpose, and what the run waits for is said."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from pipelines.on_ray import board, desk
from pipelines.on_ray.restarts import Restarts
from pipelines.on_ray.watchdog import RESTART

_PAUSE_S = 0.5
_PATIENCE_S = 3.0  # with a driver that is behind


class Guard(ControllerCallback, WorkerGroupCallback):
    """What the controller of a run does beside Ray Train's own work.

    desk, queue: of the run. least: workers that the run waits for. grace: seconds that a save may take.
    """

    def __init__(self, desk: Any, queue: Any, *, least: int, grace: float) -> None:
        self._desk, self._queue, self._grace = desk, queue, grace
        self._least = self._wanted = least
        self._said = ""
        self._restarts = Restarts(partial(board.send, queue, patience_s=_PATIENCE_S))

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Workers are there: keep where."""
        workers = {worker.distributed_context.world_rank: worker.metadata for worker in worker_group.get_workers()}
        self._restarts.placed({rank: f"{of.hostname} ({of.node_ip})" for rank, of in workers.items()})

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Workers are about to start: those that run already have saved, see below."""
        self._wanted = resize_decision.num_workers
        self._restarts.starting(self._wanted)
        self._forget()
        self._desk.starting.remote()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Save before a resize and on a preemption notice; say what is waited for, and look for room anew."""
        if isinstance(current_state, (RestartingState, ReschedulingState, ResizingState)):
            self._forget()
        if isinstance(current_state, RestartingState) and current_state is not previous_state:
            self._restarts.failed(current_state.training_failed_error)
        if isinstance(current_state, RunningState):
            self._said = ""
        elif isinstance(current_state, ResizingState):
            self._say(f"going on with {current_state.scaling_decision.num_workers} workers: there is room for them")
            self._save(self._grace)
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            self._leave(current_state)
        elif isinstance(current_state, (InitializingState, RestartingState, ReschedulingState)):
            self._wait(current_state, again=current_state is previous_state)

    def _wait(self, state: Any, *, again: bool) -> None:
        """Before Ray Train decides how many workers to start; `again` where it found room for too few."""
        if again:
            self._say(_no_room(self._least))
            time.sleep(_PAUSE_S)  # Ray Train asks again at once, and would keep a core busy with it
            return
        failure = getattr(getattr(state, "training_failed_error", None), "controller_failure", None)
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            self._say(_no_room(self._wanted))
        _count_nodes()

    def _leave(self, state: Any) -> None:
        """Restart without the nodes that go, as soon as there is a checkpoint: Ray Train would wait for the deadline.

        Ray Train counts this restart among preemptions, not among failures.
        """
        info = state.preemption_info
        ranks = ", ".join(map(str, info.preempted_ranks))
        now = time.time()
        left = self._grace if info.deadline_ms is None else min(self._grace, info.deadline_ms / 1000 - now)
        self._say(f"Ray takes the node of rank {ranks} away: saving, and going on without it")
        if self._save(max(left, 0)):
            state.preemption_info = replace(info, deadline_ms=int(now * 1000))

    def _save(self, seconds: float) -> bool:
        return bool(desk.ask(self._desk, seconds))

    def _forget(self) -> None:
        """Tell the watchdog that nobody is to be missed until workers are heard of again."""
        board.send(self._queue, RESTART, _PATIENCE_S)

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            board.send(self._queue, {"say": line})


def _no_room(workers: int) -> str:
    return f"waiting: the Ray cluster has no room for {workers} worker{'s' * (workers > 1)}"


def _count_nodes() -> None:
    """Have Ray look at once how much room its nodes have: by itself it does every 20 s, and plans with lost ones."""
    with suppress(ray.exceptions.RayError):
        ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True), timeout=5)
