"""Progress from the workers to the terminal that started them: a bar on a terminal, plain lines elsewhere.

Workers drop small dictionaries into a Ray queue; a thread of the driver draws them. Progress never hurts a run: what
cannot be delivered is dropped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click
from tqdm import tqdm

from pipelines.progress import clock

Item = Mapping[str, Any]


def send(queue: Any, item: Item) -> None:
    """Called by a worker: queue an item, or drop it."""
    from ray.exceptions import RayError
    from ray.util.queue import Full

    with suppress(Full, RayError):  # the driver is behind or gone; the figures are in MLflow
        queue.put_nowait(dict(item))


@contextmanager
def shown(total: int) -> Iterator[Any]:
    """A queue for workers whose items are drawn on stderr while the context lasts; `total` optimiser steps."""
    from ray.util.queue import Queue

    queue = Queue(maxsize=1000, actor_options={"num_cpus": 0})
    done = threading.Event()
    thread = threading.Thread(target=_draw_all, args=(queue, done, total), daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        done.set()
        thread.join(timeout=10)
        queue.shutdown(force=True)


def _draw_all(queue: Any, done: threading.Event, total: int) -> None:
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    with _canvas(total) as draw:
        while True:
            try:
                draw(queue.get(timeout=0.5))
            except Empty:
                if done.is_set():
                    return
            except RayError:
                return


@contextmanager
def _canvas(total: int) -> Iterator[Callable[[Item], None]]:
    if not sys.stderr.isatty():
        yield lambda item: click.echo(item.get("say") or describe(item), err=True)
        return
    with tqdm(total=total, unit="step", dynamic_ncols=True, file=sys.stderr) as bar:
        yield lambda item: _advance(bar, item)


def _advance(bar: tqdm[Any], item: Item) -> None:
    if "say" in item:
        bar.write(item["say"], file=sys.stderr)
        return
    bar.set_description(f"epoch {item['epoch']}/{item['epochs']}", refresh=False)
    bar.set_postfix_str(f"loss {item['loss']:.3f}, {item['images_per_second']:.0f} images/s", refresh=False)
    bar.update(item["step"] - bar.n)


def describe(item: Item) -> str:
    """A progress item as one plain line."""
    return (
        f"epoch {item['epoch']}/{item['epochs']}  step {item['step']}/{item['total']}  loss {item['loss']:.4f}  "
        f"top1 {item['top1']:.3f}  {item['images_per_second']:.0f} images/s  ETA {clock(item['eta'])}"
    )
