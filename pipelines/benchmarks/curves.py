"""Learning curves of configurations, each trained once and in full; a later call goes on with the file of them."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from agmm.loop import NotFinite
from pipelines.config import RunConfig, flatten
from pipelines.errors import ServiceError, UserError
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.progress import Progress
from pipelines.storage import open_store
from pipelines.version import code_version


class Curve(BaseModel):
    """What a configuration reached: `top1` after each epoch, fewer than all where it failed.

    `seconds` are those of its epochs, the first without what came before its first batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top1: tuple[float, ...]
    seconds: tuple[float, ...]
    failure: str = ""


class Key(NamedTuple):
    """Which training: the repeat, which is its seed, and the number of the configuration in it, from 1."""

    repeat: int
    number: int

    def __str__(self) -> str:
        return f"{self.repeat}/{self.number}"


class Curves(BaseModel):
    """The file's content. `recipe` is what all trainings share, flat; `curves` are by `repeat/number`."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    curves: dict[str, Curve] = {}

    def of(self, repeat: int) -> dict[int, Curve]:
        """The curves of one repeat, by number."""
        keys = [Key(*map(int, key.split("/"))) for key in self.curves]
        return {key.number: self.curves[str(key)] for key in sorted(keys) if key.repeat == repeat}


def read_curves(path: Path, config: RunConfig, digest: str) -> Curves:
    """What the file has, nothing where there is none; `digest` names the data set's content.

    Raises UserError where the file is damaged, or of another recipe or data set.
    """
    recipe = _shared(config) | {"data.digest": digest}
    if not path.exists():
        return Curves(recipe=recipe)
    try:
        found = Curves.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error.errors()[0]['msg']}. Remove it, or give another --out.") from error
    before = found.recipe
    keys = [key for key in before | recipe if before.get(key) != recipe.get(key)]
    if keys:
        lines = "\n".join(f"  {key}: {before.get(key)} -> {recipe.get(key)}" for key in keys)
        raise UserError(f"{path} has curves of another recipe:\n{lines}\nSet these back, or give another --out.")
    return found


def train_curves(jobs: Mapping[Key, RunConfig], folder: Path, known: Curves, path: Path, processes: int) -> None:
    """Train what `known` lacks, in so many processes, and write the file at `path` after each.

    Raises ServiceError where a process is lost.
    """
    todo = {key: config for key, config in jobs.items() if str(key) not in known.curves}
    with Progress(len(todo), "trainings", "training") as progress, _pool(min(processes, len(todo) or 1)) as pool:
        futures: dict[Future[Curve], Key] = {
            pool.submit(train_curve, config, folder): key for key, config in todo.items()
        }
        for future in as_completed(futures):
            known.curves[str(futures[future])] = future.result()
            _write(known, path)
            progress.advance()


def train_curve(config: RunConfig, folder: Path) -> Curve:
    """Train one configuration on the CPU, with one thread, in a store of its own that is left empty."""
    torch.set_num_threads(1)
    clock, failure = _Clock(), ""
    try:
        _train(config, folder, clock.mark, clock.epoch)
    except NotFinite as error:
        failure = str(error)
    return Curve(top1=tuple(clock.top1), seconds=tuple(clock.seconds), failure=failure)


class Start(NamedTuple):
    """Seconds that a training in a fresh process takes beyond its epochs, and seconds of an epoch.

    Measured together, so that as much other work on the machine is in the one as in the other.
    """

    seconds: float
    epoch: float


def start_up(config: RunConfig, folder: Path) -> Start:
    """Train two epochs in a process of its own: the second is an epoch, and the first has what is compiled once."""
    began = time.perf_counter()
    with _pool(1) as pool:
        epochs = pool.submit(_two_epochs, config, folder).result()
        ended = time.perf_counter()
    return Start(ended - began - len(epochs) * epochs[-1], epochs[-1])


class _Enough(Exception):
    """Two epochs are trained."""


def _two_epochs(config: RunConfig, folder: Path) -> list[float]:
    torch.set_num_threads(1)
    clock = _Clock()

    def on_epoch(metrics: dict[str, float]) -> None:
        clock.epoch(metrics)
        if len(clock.seconds) > 1:
            raise _Enough

    with suppress(_Enough):
        _train(config, folder, clock.mark, on_epoch)
    return clock.seconds


class _Clock:
    """Takes the time and the accuracy of each epoch."""

    def __init__(self) -> None:
        self.top1: list[float] = []
        self.seconds: list[float] = []
        self._began = 0.0

    def mark(self, what: str) -> None:
        if what == "first batch":  # which the loop says of every batch
            self._began = self._began or time.perf_counter()

    def epoch(self, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        self.top1.append(metrics["top1"])
        self.seconds.append(now - self._began)
        self._began = now


def _train(
    config: RunConfig, folder: Path, mark: Callable[[str], None], on_epoch: Callable[[dict[str, float]], None]
) -> None:
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
        outside = Outside(
            open_store(scratch), lambda _row, _step: None, lambda _item: None, on_epoch=on_epoch, mark=mark
        )
        run(config, World(0, 1, torch.device("cpu")), outside, folder, code_version())


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes; what they have not begun is dropped where the caller fails or is interrupted."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ServiceError("A process that trained was lost, perhaps for want of memory. Lower --processes.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _shared(config: RunConfig) -> dict[str, Any]:
    """What decides a curve beside its seed and drawn values; not where data lie and what is shown."""
    tree = flatten(config.model_dump(mode="json", exclude={"seed", "tracking", "checkpoint", "name", "tune"}))
    space = flatten(config.model_dump(mode="json", include={"tune": {"space"}}))
    return {key: value for key, value in (tree | space).items() if key != "data.uri"}


def _write(curves: Curves, path: Path) -> None:
    """In place of the old file at once, so that a killed bench leaves one or the other."""
    new = path.with_suffix(".new")
    new.write_text(curves.model_dump_json(indent=1))
    new.replace(path)
