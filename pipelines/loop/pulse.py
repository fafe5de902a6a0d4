"""What a rank is doing, told to the driver every few seconds by a thread of its own; `watchdog` judges it.

The loop marks its phases; the thread tells them as `{"pulse": {...}}` also while the loop waits or hangs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

EVERY_S = 5.0
WAITS = ("exchange", "gather")  # for other ranks; all other phases are a rank's own work
CACHE_BYTES = "cache_bytes"  # a note: what the cache of staged data sets takes on the rank's node
_BUSY = ("load", "forward")


class Pulse:
    """The phase of a rank, since when it is in it, how long its own part of a step takes, and where all time went.

    Phases: `start`, and `stage` while the data set is brought to the node; then for each step `load`, `forward`,
    `backward`, `exchange` (which waits for the other ranks' gradients) and `update`; `report`, `validate`, `commit`;
    and `gather`, whatever else waits for the other ranks. A rank is always in one of them: their seconds are all.

    """

    def __init__(self, rank: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._rank, self._clock, self._lock = rank, clock, threading.Lock()
        self._life = uuid.uuid4().hex  # hosts and pids come again
        self._phase, self._since, self._step = "start", clock(), 0
        self._done = self._steps = 0  # by this process, and since the last item
        self._busy = self._spent = 0.0  # seconds: of the steps since the last item, and of the one under way
        self.notes: dict[str, float] = {}  # what else it tells, by name
        self._seconds: dict[str, float] = defaultdict(float)  # by phase, without the one under way
        self._lapped: dict[str, float] = {}  # what the laps so far had

    def phase(self, name: str, step: int | None = None) -> None:
        """The rank begins a phase, of optimiser step `step` (from 1) or the same as before.

        A phase that is marked anew has made progress: its time starts again at zero.
        """
        with self._lock:
            now = self._clock()
            self._seconds[self._phase] += now - self._since
            if self._phase in _BUSY:
                self._spent += now - self._since
            elif self._phase == "update":
                self._end_step()
            self._phase, self._since = name, now
            self._step = self._step if step is None else step

    def _end_step(self) -> None:
        if self._done:  # the first step holds compilation
            self._steps, self._busy = self._steps + 1, self._busy + self._spent
        self._done, self._spent = self._done + 1, 0.0

    @property
    def step(self) -> int:
        """The optimiser step that was begun last, from 1."""
        return self._step

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap."""
        with self._lock:
            now = self._so_far()
            lap = {name: seconds - self._lapped.get(name, 0.0) for name, seconds in now.items()}
            self._lapped = now
            return lap

    def _so_far(self) -> dict[str, float]:
        """Seconds by phase since the process began to count, that under way included."""
        under_way = self._clock() - self._since
        return self._seconds | {self._phase: self._seconds[self._phase] + under_way}

    def item(self) -> dict[str, Any]:
        """What the rank tells: `since` is the seconds in the phase, `busy` the mean of its own seconds in a step.

        `busy` is over the `steps` since the last item; `done` counts all steps of the process, which
        `life` names among all that the run has had, and `seconds` are all of its time, by phase.
        """
        with self._lock:
            steps, busy = self._steps, self._busy
            self._steps, self._busy = 0, 0.0
            return {
                "rank": self._rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "life": self._life,
                "step": self._step,
                "phase": self._phase,
                "since": self._clock() - self._since,
                "busy": busy / steps if steps else 0.0,
                "steps": steps,
                "done": self._done,
                "seconds": self._so_far(),
                "notes": dict(self.notes),
            }

    @contextmanager
    def beating(self, send: Callable[[Mapping[str, Any]], None], every: float = EVERY_S) -> Iterator[None]:
        """Tell the phase now and every `every` seconds while the context lasts, and then that the rank has ended."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(send, every, ended), daemon=True, name="pulse")
        thread.start()
        try:
            yield
        finally:
            self.phase("end")
            ended.set()
            # a driver that does not answer must not keep a worker from ending
            thread.join(timeout=EVERY_S)

    def _beat(self, send: Callable[[Mapping[str, Any]], None], every: float, ended: threading.Event) -> None:
        send({"pulse": self.item()})
        while not ended.wait(every):
            send({"pulse": self.item()})
        send({"pulse": self.item()})
