"""How a run on Ray ends before its time: Ctrl-C and the signals that stand for it, and a Ray head that is gone."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.train.torch import TorchTrainer

from pipelines.on_ray import desk
from pipelines.on_ray.board import Board
from pipelines.progress import Say

_ABORT_S = 10.0
_HEAD_EVERY_S, _HEAD_TRIES = 2.0, 4


class Trainer(TorchTrainer):
    """Ray's trainer, but an interrupted run saves a checkpoint first.

    on_interrupt: what SIGINT calls while workers run, with the controller as its only argument.
    """

    def __init__(self, *args: Any, on_interrupt: Interrupt, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_interrupt = on_interrupt

    def fit(self) -> Any:
        """Run the workers; the handler of SIGINT is the caller's again afterwards."""
        before = signal.getsignal(signal.SIGINT)
        try:
            return super().fit()
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _register_sigint_handler(self, controller: Any) -> None:
        self._on_interrupt.controller = controller
        signal.signal(signal.SIGINT, self._on_interrupt)


class Interrupt:
    """SIGINT's handler. The first asks rank 0 for a checkpoint, a second does not wait for it, a third for nothing."""

    def __init__(self, watched: Board, desk: Any, grace: float, say: Say) -> None:
        self.controller: Any = None
        self._watched, self._desk, self._grace, self._say = watched, desk, grace, say
        self._count = 0

    def __call__(self, *_: object) -> None:
        """Raise KeyboardInterrupt once the workers are told to end."""
        self._count += 1
        if self._count == 2:
            return  # the first is waiting below, and looks at the count
        if self._count == 1:
            if not self._watched.failure:
                self._save()
            self._abort()
        raise KeyboardInterrupt

    def _save(self) -> None:
        if not self._grace:
            return
        self._say("interrupted: saving a checkpoint where there is something to save; again to end without it")
        name = desk.ask(self._desk, self._grace, lambda: self._count > 1)
        if name:
            self._say(f"interrupted: saved {name}")

    def _abort(self) -> None:
        """Have Ray Train end the workers; a controller that does not answer is ended with them."""
        import ray

        if not self._watched.head_lost:
            with suppress(ray.exceptions.RayError):
                if not ray.wait([self.controller.abort.remote()], timeout=_ABORT_S)[0]:
                    ray.kill(self.controller)


@contextmanager
def head_watched(watched: Board) -> Iterator[None]:
    """Fail the run when the Ray head is gone; Ray would end this process after a minute, without a word to anyone."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    done = threading.Event()
    thread = threading.Thread(target=_watch_head, args=(watched, (host, int(port)), done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=_HEAD_EVERY_S * 2)


def _watch_head(watched: Board, head: tuple[str, int], done: threading.Event) -> None:
    missed = 0
    while not done.wait(_HEAD_EVERY_S):
        try:
            socket.create_connection(head, timeout=_HEAD_EVERY_S).close()
            missed = 0
        except OSError as error:
            missed += 1
            if missed >= _HEAD_TRIES:
                watched.head_lost = True
                watched.fail(f"The Ray head at {head[0]}:{head[1]} is gone: {error.strerror or error}")
                return
