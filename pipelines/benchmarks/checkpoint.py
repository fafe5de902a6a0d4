"""What a checkpoint costs the training step, against `torch.save` and fsync between two steps, in one run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from agmm.loop import train_step
from agmm.metrics.flips import signs
from pipelines.benchmarks import DATASET, circumstances, row, small_data
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import PARTS
from pipelines.checkpoints.saver import Saver
from pipelines.config import RunConfig, parse_config
from pipelines.data.loaders import open_loader
from pipelines.errors import ServiceError
from pipelines.home import home
from pipelines.loop.keeping import keep
from pipelines.loop.measure import Measures
from pipelines.loop.profile import Profiler
from pipelines.loop.state import Plan, State
from pipelines.loop.utilisation import Utilisation
from pipelines.loop.world import Outside, World
from pipelines.network import build_network, build_optimizer, normalise
from pipelines.progress import Progress, Say
from pipelines.storage import Store, open_store
from pipelines.teacher import build_criterion
from pipelines.version import code_version

_STEPS = 4  # without a checkpoint, in each round
_MAX_AGE_S = 600.0


@dataclass(frozen=True)
class Size:
    """What is trained; by default a ResNet-18 for ImageNet whose steps are short. `resolution` in pixels."""

    width: int = 64
    classes: int = 1000
    resolution: int = 32
    batch_size: int = 2


@dataclass
class Times:
    """Seconds. `plain` and `storing` are of steps, the others of one checkpoint each."""

    plain: list[float] = field(default_factory=list)
    storing: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


def bench(uri: str | None, rounds: int, say: Say, size: Size = Size()) -> dict[str, Any]:
    """Measure in a folder of the home, or at `uri`, and leave nothing there. See `measure`."""
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home()) as scratch:  # on the disk that runs use
        folder = Path(scratch)
        store = open_store(f"{uri or folder}/{folder.name}")
        try:
            return measure(store, folder, rounds, say, size)
        finally:
            store.delete(store.keys(""))


def measure(store: Store, scratch: Path, rounds: int, say: Say, size: Size = Size()) -> dict[str, Any]:
    """Train in rounds: some steps, the peer's way to save, then a checkpoint and steps until it is stored.

    Args:
        store: takes the checkpoints, and stays as it is left.
        scratch: a folder for the data set, and for the peer's files.
        rounds: how many; one more comes first, whose checkpoint takes the memory that the others use again.
        say: told what is measured.
        size: of the network and its input.

    Raises ServiceError where a checkpoint cannot be stored.

    """
    plan, state = _trained(store, scratch, size)
    failures: list[str] = []
    state.saver = Saver(
        claim(store, "bench"), keep=2, max_age_s=_MAX_AGE_S, on_saved=lambda _: None, on_failure=failures.append
    )
    images, labels = next(iter(plan.train.epoch(0)))
    batch = normalise(images, plan.config.data, plan.world.device), labels
    first, times = Times(), Times()
    _step(state, batch)  # from here on there is momentum
    megabytes = _megabytes(plan, state)
    say(f"a checkpoint of {sum(megabytes.values()):.1f} MB: " + ", ".join(f"{k} {v:.1f}" for k, v in megabytes.items()))
    try:
        with Progress(rounds + 1, "rounds", "round") as progress:
            for count in range(rounds + 1):
                _round(plan, state, batch, times if count else first, scratch)
                progress.advance()
                if failures:
                    raise ServiceError(f"The measurement is void: {failures[0]}")
    finally:
        state.saver.close()
        plan.train.close()
        plan.val.close()
    about = {"store": store.uri, "rounds": rounds, "threads": torch.get_num_threads()} | circumstances()
    return {"rows": _rows(times, first), "megabytes": megabytes, **about}


def _config(store: Store, data: Path, size: Size) -> RunConfig:
    tree = {
        "name": "bench",
        "data": {
            "dataset": DATASET,
            "uri": str(data),
            "resolution": size.resolution,
            "batch_size": size.batch_size,
            "loader": "torch",
        },
        "model": {
            "arch": "agmm_resnet18",
            "num_classes": size.classes,
            "width": size.width,
            "stem": "imagenet",
            "time_steps": 1,
        },
        "optim": {"lr": 1e-3, "epochs": 1},
        "checkpoint": {"uri": store.uri},
    }
    return parse_config(tree, origin="bench")


def _trained(store: Store, scratch: Path, size: Size) -> tuple[Plan, State]:
    """A run before its first step, as `pipelines.loop.worker` makes it."""
    data = small_data(scratch, train=8 * size.batch_size, size=size.resolution)
    config, world = _config(store, data, size), World(0, 1, torch.device("cpu"))
    outside = Outside(store, lambda _row, _step: None, lambda _item: None, lambda _metrics: None)
    train = open_loader(data, "train", data=config.data, seed=config.seed)
    val = open_loader(data, "val", data=config.data, seed=config.seed)
    network = build_network(config.model)
    optimizer, criterion = build_optimizer(network, config.optim), build_criterion(config, network, world.device)
    measures = Measures(network, config, world.sum, world.size)
    beside = Utilisation(config.model, world, config.run.precision), Profiler(config.run.profile, world, outside)
    state = State(network, network, optimizer, criterion, measures, *beside, signs(network))
    return Plan(config, world, outside, train, val, code_version()), state


def _round(plan: Plan, state: State, batch: tuple[torch.Tensor, torch.Tensor], times: Times, scratch: Path) -> None:
    def step() -> None:
        _step(state, batch)

    assert state.saver is not None
    plain = [_timed(step) for _ in range(_STEPS)]
    times.peer.append(_timed(lambda: _save_between_steps(plan, state, scratch)))
    step()
    state.is_due = True
    began = time.perf_counter()
    stall = _timed(lambda: keep(plan, state))
    storing = []
    while not state.saver.ready():
        storing.append(_timed(step))
    times.stored.append(time.perf_counter() - began)
    times.cost.append(stall + sum(storing) - len(storing) * median(plain))
    times.stall.append(stall)
    times.plain += plain
    times.storing += storing


def _step(state: State, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    state.model.train()
    with state.measures.step(ends_epoch=False):
        train_step(state.model, state.optimizer, *batch, criterion=state.criterion)
    state.position = replace(state.position, step=state.position.step + 1)


def _save_between_steps(plan: Plan, state: State, scratch: Path) -> None:
    """What a training script does: everything to one file, and to the server if there is one, before the next step."""
    path = scratch / "peer.pt"
    parts = {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict(), "signs": state.signs}
    with path.open("wb") as file:
        torch.save(parts, file)
        file.flush()
        os.fsync(file.fileno())
    if plan.outside.store.uri.startswith("s3://"):
        plan.outside.store.put(path, path.name)


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _megabytes(plan: Plan, state: State) -> dict[str, float]:
    found = state.snapshot(plan)
    return {part: sum(value.nbytes for value in getattr(found, part).values()) / 1e6 for part in PARTS}


def _rows(times: Times, first: Times) -> list[dict[str, Any]]:
    """Milliseconds; the peer of a checkpoint is the save between steps, that of a step one without a checkpoint."""
    peer, plain, storing = (1000 * median(seconds) for seconds in (times.peer, times.plain, times.storing))
    return [
        row("stall of a step, median", 1000 * median(times.stall), "ms", peer),
        row("stall of a step, p90", 1000 * _p90(times.stall), "ms", 1000 * _p90(times.peer)),
        row("stall of a step, first checkpoint", 1000 * first.stall[0], "ms", 1000 * first.peer[0]),
        row("step while one is stored, median", storing, "ms", plain),
        row("excess of such a step, median", storing - plain, "ms"),
        row("all that a checkpoint delays training, median", 1000 * median(times.cost), "ms", peer),
        row("until it is committed and verified, median", 1000 * median(times.stored), "ms", peer),
    ]


def _p90(values: list[float]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]
