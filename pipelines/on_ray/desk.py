"""Where the driver and Ray Train's controller ask rank 0 of a run to save a checkpoint and stop, and learn its name.

An actor beside the driver. Rank 0 listens from its first step on; before that there is nothing to save, and whoever
asks has his answer at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EAR = "agmm-ear"  # the thread of an `Ear`
_POLL_S = 1.0
_GONE_S = 10.0  # without a sign of life rank 0 is not waited for
_ENDED_S = 600.0  # rank 0 is ended by whoever asked; if nobody does, it gives up waiting


class Desk:
    """The actor. Its clock is the only one that is read: those of two nodes may differ."""

    def __init__(self) -> None:
        self._asked, self._answered = asyncio.Event(), asyncio.Event()
        self._name = ""
        self._seen = self._starting = float("-inf")

    async def starting(self) -> None:
        """Workers start now; until one listens there is nobody to ask."""
        self._starting, self._seen = time.monotonic(), float("-inf")

    async def seconds(self) -> float:
        """Since workers started."""
        return time.monotonic() - self._starting

    async def attach(self) -> None:
        """Rank 0 listens from now on."""
        self._asked.clear()
        self._answered.clear()
        self._seen = time.monotonic()

    async def asked(self) -> bool:
        """Whether rank 0 is to save and stop; waits a moment for it."""
        self._seen = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), _POLL_S)
        return self._asked.is_set()

    async def answer(self, name: str) -> None:
        """Rank 0 has committed this checkpoint."""
        self._name = name
        self._answered.set()

    async def is_attended(self) -> bool:
        """Whether rank 0 has given a sign of life lately."""
        return time.monotonic() - self._seen < _GONE_S

    async def ask(self, seconds: float) -> str:
        """The name of the checkpoint that rank 0 saves on this; empty where there is none in so many seconds."""
        if not await self.is_attended():
            return ""
        self._asked.set()
        try:
            await asyncio.wait_for(self._answered.wait(), seconds)
        except TimeoutError:
            return ""
        return self._name


def open_desk() -> Any:
    """A desk on this process's node: it must not go with a node that workers lose."""
    import ray

    return ray.remote(num_cpus=0, max_concurrency=100, **beside_me())(Desk).remote()


def beside_me() -> dict[str, Any]:
    """Options of an actor that stays on this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def ask(desk: Any, seconds: float, skip: Callable[[], bool] = lambda: False) -> str:
    """Ask rank 0 to save, and wait for so many seconds, or until `skip`; the checkpoint's name, empty without one."""
    import ray

    answer = desk.ask.remote(seconds)
    deadline = time.monotonic() + seconds + 1
    with suppress(ray.exceptions.RayError):
        while time.monotonic() < deadline and not skip():
            if ray.wait([answer], timeout=0.1)[0]:
                return str(ray.get(answer))
    return ""


class Ear:
    """Rank 0's end: a thread of its own waits for the desk, and looking costs the loop nothing."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._flag = desk, threading.Event()
        self._thread: threading.Thread | None = None

    def seconds(self) -> float:
        """Since the workers were started; by the desk's clock."""
        import ray

        return float(ray.get(self._desk.seconds.remote()))

    def asked(self) -> bool:
        """Whether the loop is to save a checkpoint and stop. It listens from the first call on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name=EAR, daemon=True)
            self._thread.start()
        return self._flag.is_set()

    def _listen(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError, SystemExit):  # which Ray raises when it ends with the process
            ray.get(self._desk.attach.remote())
            while not ray.get(self._desk.asked.remote()):
                pass
            self._flag.set()

    def saved(self, name: str) -> None:
        """Tell who asked, and wait to be ended.

        Raises TimeoutError where nobody does it.
        """
        import ray

        ray.get(self._desk.answer.remote(name))
        threading.Event().wait(_ENDED_S)
        raise TimeoutError(f"checkpoint {name} was asked for, and nobody ended the worker for {_ENDED_S:.0f} s")
