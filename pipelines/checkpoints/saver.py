"""Checkpoints behind the training step: a copy in memory is all that a step waits for; a thread stores it.

There is room for one checkpoint. While it is being stored the next one is not taken, so a slow store makes checkpoints
rarer and leaves training alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agmm.finite import all_finite
from agmm.loop import NotFinite
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import Attempt
from pipelines.checkpoints.checkpoint import Checkpoint
from pipelines.errors import Fenced, ServiceError

_PAUSE_S = 15.0  # after a failure, before the next checkpoint is taken
_TRY_S = 300.0  # at the least, before a run whose checkpoints are rare is given up
_SLOW_S = 60.0
_LEAVE_S = 15.0
_NICE = 10
_BIG = 1 << 15  # elements from which torch copies by several threads, which wait for each other where cores are busy


class Saver:
    """Stores the checkpoints of one attempt, one at a time, and keeps the newest few.

    Args:
        attempt: what writes.
        keep: committed checkpoints to keep.
        max_age_s: how old the newest committed checkpoint may become while storing fails.
        on_saved: told the name of each one, in the saver's thread.
        on_failure: told why one could not be stored, in the saver's thread.

    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        keep: int,
        max_age_s: float,
        on_saved: Callable[[str], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._attempt, self._keep, self._max_age_s = attempt, keep, max_age_s
        self._on_saved, self._on_failure = on_saved, on_failure
        self._memory: dict[str, Tensor] = {}
        self._waiting: Checkpoint | None = None
        self._changed = threading.Condition()
        self._newest = ""
        self._since = time.monotonic()  # the newest was committed, or the attempt began
        self._failure: BaseException | None = None  # of the last try
        self._failing_since = self._taken_at = 0.0
        self._said_slow = False
        self._retry_at = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="checkpoints")
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether the last try failed, so that another is due."""
        return self._failure is not None

    def ready(self) -> bool:
        """Whether a checkpoint can be taken now.

        Raises Fenced, or what else no later try would mend; ServiceError where none could be stored for too long.
        """
        self._raise_if_final()
        self._raise_if_stuck()
        return self._waiting is None and time.monotonic() >= self._retry_at

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy the checkpoint's tensors, which may be on any device, and have the copy stored."""
        assert self._waiting is None
        with self._changed:
            self._waiting = self._copied(checkpoint)
            self._taken_at, self._said_slow = time.monotonic(), False
            self._changed.notify_all()

    def finish(self, checkpoint: Checkpoint) -> str:
        """Store a checkpoint that nothing follows, trying again where that fails; returns its name once committed.

        Raises like `ready`.
        """
        self._wait()
        while True:
            self.save(checkpoint)
            self._wait()
            if self._failure is None:
                return self._newest
            self._raise_if_final()
            time.sleep(min(_PAUSE_S, self._max_age_s / 4))

    def close(self) -> None:
        """Let what is being stored be finished, for some seconds, and end the thread. Nothing is raised."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_LEAVE_S)

    def _wait(self) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: self._waiting is None, timeout=1):
                self._raise_if_stuck()

    def _raise_if_stuck(self) -> None:
        """For a store that neither takes a checkpoint nor fails, as a network disk may."""
        seconds = time.monotonic() - self._taken_at
        if self._waiting is None or seconds < _SLOW_S:
            return
        if seconds > max(self._max_age_s, _SLOW_S):
            raise ServiceError(
                f"{self._attempt.store.uri} has not taken a checkpoint for {seconds:.0f} s, and checkpoint.max_age is "
                f"{self._max_age_s:.0f} s, so the run ends. Check that the disk or the server answers."
            )
        if not self._said_slow:
            self._said_slow = True
            self._on_failure(
                f"storing the checkpoint of step {self._waiting.position.step} takes long: {seconds:.0f} s so far"
            )

    def _raise_if_final(self) -> None:
        failure = self._failure
        if failure is None:
            return
        if not isinstance(failure, ServiceError) or isinstance(failure, Fenced):
            raise failure
        now = time.monotonic()
        age = now - self._since
        # where checkpoints are rarer than max_age, the first failure must not be the last word
        if age > self._max_age_s and now - self._failing_since > min(self._max_age_s, _TRY_S):
            raise ServiceError(
                f"No checkpoint could be stored for {age:.0f} s, and checkpoint.max_age is {self._max_age_s:.0f} s, so "
                f"the run ends. The last try: {failure}"
            ) from failure

    def _copied(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint in memory of the saver's own, used again: fresh memory would cost more than the copy."""
        copies: dict[str, Any] = {
            part: {name: self._copy(f"{part}/{name}", value) for name, value in getattr(checkpoint, part).items()}
            for part in checkpoints.PARTS
        }
        if any(value.is_cuda for value in checkpoint.model.values()):
            torch.cuda.synchronize()  # the copies were only begun
        return replace(checkpoint, **copies)

    def _copy(self, key: str, value: Tensor) -> Tensor:
        place = self._memory.get(key)
        if place is None or place.shape != value.shape or place.dtype != value.dtype:
            # in the value's own order of axes: to write channels last as contiguous is for the thread that stores
            place = self._memory[key] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        if value.is_cpu and value.numel() >= _BIG and place.stride() == value.stride():
            np.copyto(_bytes(place), _bytes(value))
            return place
        return place.copy_(value.detach(), non_blocking=True)

    def _work(self) -> None:
        if sys.platform == "linux":
            with suppress(OSError):  # on Linux a thread has a niceness of its own: training comes first
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
            try:
                self._store(self._waiting)
            except BaseException as error:  # noqa: BLE001, what listens has failed: the loop raises it, and must not wait
                self._failure = error
            finally:
                with self._changed:
                    self._waiting = None
                    self._changed.notify_all()

    def _store(self, checkpoint: Checkpoint) -> None:
        try:
            _check_finite(checkpoint)
            self._newest = checkpoints.save(self._attempt, checkpoint)
        except Exception as error:  # noqa: BLE001, it belongs to the loop, which raises it
            now = time.monotonic()
            self._failing_since = self._failing_since if self.failing else now
            self._failure, self._retry_at = error, now + _PAUSE_S
            if not isinstance(error, Fenced):
                self._on_failure(f"the checkpoint of step {checkpoint.position.step} could not be stored: {error}")
            return
        self._failure, self._since = None, time.monotonic()
        self._on_saved(self._newest)
        try:
            checkpoints.prune(self._attempt.store, self._keep, self._newest)
        except (ServiceError, OSError) as error:
            self._on_failure(f"old checkpoints could not be removed: {error}")


def _bytes(dense: Tensor) -> NDArray[np.uint8]:
    """The memory of a CPU tensor without gaps, in the order in which it lies there."""
    flat: NDArray[np.uint8] = dense.detach().as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
    return flat


def _check_finite(checkpoint: Checkpoint) -> None:
    """Raise NotFinite for weights that an update has carried off: the step after would, and could not be resumed."""
    if not all_finite(value for value in checkpoint.model.values() if value.is_floating_point()):
        raise NotFinite(
            f"the weights are not finite after step {checkpoint.position.step}, which is not stored. Lower optim.lr."
        )
