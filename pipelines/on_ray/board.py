"""What workers tell the driver: most of it is shown on its terminal, a bar on a terminal, plain lines elsewhere.

Workers drop small dictionaries into a Ray queue; a thread of the driver takes them out. An item is progress (see
`describe`), `{"say": line}`, `{"failed": reason}`, which interrupts the driver, since a restart would fail again, or
`{KIND: ...}` for whoever listens to that kind. Telling never hurts a run: what cannot be delivered is dropped.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tqdm import tqdm

from pipelines import logs
from pipelines.on_ray.desk import beside_me
from pipelines.progress import clock

Item = Mapping[str, Any]
Listeners = dict[str, Callable[[Item], None]]

_CANNOT_DRAW = (OSError, ValueError)  # stderr on a full disk, of a reader or terminal that is gone, or closed
# tqdm's own rate and ETA would count Ray's start; the workers know better
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {postfix}"


@dataclass
class Board:
    """The queue that workers write to, who listens to which kind of item, and why the run has failed, if it has."""

    listeners: Listeners = field(default_factory=dict)
    queue: Any = None
    failure: str = ""
    head_lost: bool = False

    def take(self, item: Item, draw: Callable[[Item], None]) -> None:
        """Give an item to whom it concerns; one that cannot be shown or kept does not hold up those behind it."""
        kind = next(iter(item))
        if kind in self.listeners:
            with suppress(OSError):
                self.listeners[kind](item)
        elif kind != "failed":
            with suppress(*_CANNOT_DRAW):
                draw(item)
        else:
            self.fail(item["failed"])

    def listen(self, kind: str, listener: Callable[[Item], None]) -> None:
        """Have one more listener hear a kind of item, after those that do."""
        before = self.listeners.get(kind, lambda _: None)

        def both(item: Item) -> None:
            before(item)
            listener(item)

        self.listeners[kind] = both

    def fail(self, reason: str) -> None:
        """End the run, from any thread of the driver; the first reason counts."""
        if not self.failure:
            self.failure = reason
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: Ray Train stops the workers


def send(queue: Any, item: Item, patience_s: float = 0.0) -> None:
    """Called by a worker: queue an item, or drop it; where the queue is full, after some seconds of patience."""
    from ray.exceptions import RayError
    from ray.util.queue import Full

    with suppress(Full, RayError):  # the driver is behind or gone
        queue.put(dict(item), block=patience_s > 0, timeout=patience_s or None)


@contextmanager
def shown(watched: Board, total: int) -> Iterator[None]:
    """Give the board a queue and draw what comes on stderr while the context lasts; `total` optimiser steps."""
    with heard(watched, _canvas(total)):
        yield


@contextmanager
def heard(watched: Board, canvas: AbstractContextManager[Callable[[Item], None]]) -> Iterator[None]:
    """Give the board a queue and take what comes while the context lasts; what nobody listens to goes to the canvas."""
    from ray.util.queue import Queue

    watched.queue = Queue(maxsize=1000, actor_options={"num_cpus": 0, **beside_me()})
    done = threading.Event()
    thread = threading.Thread(target=_draw_all, args=(watched, done, canvas), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def _draw_all(watched: Board, done: threading.Event, canvas: AbstractContextManager[Callable[[Item], None]]) -> None:
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    with canvas as draw:
        while True:
            try:
                item = watched.queue.get(timeout=0.5)
            except Empty:
                if done.is_set():
                    return
                continue
            except RayError:
                return
            _take(watched, item, draw)


def _take(watched: Board, item: Item, draw: Callable[[Item], None]) -> None:
    """Have the board take an item. A listener's error costs this item and is said; unheard, all workers would go on."""
    try:
        watched.take(item, draw)
    except Exception as error:  # noqa: BLE001, of whatever kind
        with suppress(*_CANNOT_DRAW):
            logs.line(f"what a worker told was lost: {type(error).__name__}: {error}", level="ERROR")


@contextmanager
def _canvas(total: int) -> Iterator[Callable[[Item], None]]:
    bar = _open_bar(total)
    try:
        yield partial(_advance, bar) if bar is not None else _print
    finally:
        if bar is not None:
            with suppress(*_CANNOT_DRAW):
                bar.close()


def _open_bar(total: int) -> tqdm[Any] | None:
    """A bar where stderr is a terminal that can be written to."""
    with suppress(*_CANNOT_DRAW):
        if sys.stderr.isatty() and not logs.as_json():
            return tqdm(total=total, bar_format=_BAR, desc="workers start", dynamic_ncols=True, file=sys.stderr)
    return None


def _print(item: Item) -> None:
    logs.line(item.get("say") or describe(item), **{key: value for key, value in item.items() if key != "say"})


def _advance(bar: tqdm[Any], item: Item) -> None:
    if "say" in item:
        bar.write(item["say"], file=sys.stderr)
        return
    bar.set_description_str(f"epoch {item['epoch']}/{item['epochs']}", refresh=False)
    figures = f"loss {item['loss']:.3f} {item['images_per_second']:.0f} images/s ETA {clock(item['eta'])}"
    bar.set_postfix_str(figures, refresh=False)
    bar.update(item["step"] - bar.n)


def describe(item: Item) -> str:
    """A progress item as one plain line."""
    return (
        f"epoch {item['epoch']}/{item['epochs']}  step {item['step']}/{item['total']}  loss {item['loss']:.4f}  "
        f"top1 {item['top1']:.3f}  {item['images_per_second']:.0f} images/s  mfu {item['mfu']:.2f}  "
        f"ETA {clock(item['eta'])}"
    )
