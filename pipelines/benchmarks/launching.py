"""A launch of `agmm bench ray`, watched: how long its start took, its steps, and how busy it kept the processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from pipelines.benchmarks import DATASET
from pipelines.benchmarks.launched import WORKER
from pipelines.errors import ServiceError

if TYPE_CHECKING:
    import psutil

SIDES = ("ray", "torchrun")
_SPEED = "train/images_per_second"
_LOOK_EVERY_S = 0.02
_FOREIGN = ("AGMM_", "AWS_", "MLFLOW_", "RAY_")
_END_S = 30.0


@dataclass(frozen=True)
class Size:
    """What is trained: `steps` a launch of a batch for all `workers`, logged every `window`; warm-up in windows."""

    steps: int = 160
    workers: int = 2
    width: int = 16
    resolution: int = 32
    batch_size: int = 16
    window: int = 5
    warm_up: int = 4


USUAL = Size()


@dataclass(frozen=True)
class Launch:
    """Seconds until the first step began, and of a step in each window after the warm-up.

    And those of processors: the workers' in a step, and by second those of all other processes of the launch.
    """

    startup: float
    steps: list[float]
    processor: float
    beside: float


class Sample(NamedTuple):
    """Seconds that processors have worked for the workers, and for all other processes, when a window was logged."""

    at: float
    workers: float
    beside: float


def launch(side: str, folder: Path, data: Path, size: Size) -> Launch:
    """Run one side in a folder that is made. Raises ServiceError where it fails, with what it said last."""
    folder.mkdir()
    recipe, rows = folder / "recipe.yaml", folder / "rows"
    recipe.write_text(yaml.safe_dump(_recipe(data, folder, size)))
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size.workers}", "-m"]
    command = [*(launcher if side == "torchrun" else []), "pipelines.benchmarks.launched", side, str(recipe), str(rows)]
    began = time.time()
    samples = _watched([sys.executable, "-m", *command], folder, rows)[size.warm_up :]
    windows = _logged(rows, size.batch_size)
    (first, seconds), rest = windows[0], windows[size.warm_up :]
    before, after, steps = samples[0], samples[-1], (len(samples) - 1) * size.window
    return Launch(
        startup=first - size.window * seconds - began,
        steps=[each for _, each in rest],
        processor=(after.workers - before.workers) / steps,
        beside=(after.beside - before.beside) / (after.at - before.at),
    )


def _logged(rows: Path, batch_size: int) -> list[tuple[float, float]]:
    """When each window was logged, and the seconds of a step in it."""
    logged = [json.loads(line) for line in rows.read_text(encoding="ascii").splitlines()]
    return [(at, batch_size / its[_SPEED]) for at, its in logged if _SPEED in its]


def _watched(command: list[str], folder: Path, rows: Path) -> list[Sample]:
    """Run a launch to its end; a sample for each window that it logs. It ends too where this process is interrupted."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    own = {"AGMM_HOME": str(folder / "home"), "AGMM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    said, samples, sample = folder / "said", list[Sample](), None
    with ExitStack() as ends:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=ends.enter_context(said.open("w")),
            env={"GLOO_SOCKET_IFNAME": "lo", **kept, **own},
        )
        ends.callback(_end, process)
        while process.poll() is None:
            time.sleep(_LOOK_EVERY_S)
            if (logged := _windows(rows)) > len(samples):
                sample = sample or _sampler(process.pid, folder)
                samples += [sample()] * (logged - len(samples))
    if process.returncode:
        raise ServiceError(f"A launch ended with {process.returncode}. It said last:\n{said.read_text()[-2000:]}")
    return samples


def _windows(rows: Path) -> int:
    return rows.read_text(encoding="ascii").count(_SPEED) if rows.exists() else 0


def _sampler(pid: int, folder: Path) -> Callable[[], Sample]:
    """What takes a sample of the processes that are there now."""
    import psutil

    root = psutil.Process(pid)
    family = {each.pid: each for each in (root, *root.children(recursive=True))}
    workers = [family.pop(int(file.read_text())) for file in folder.glob(f"{WORKER}-*")]
    return lambda: Sample(time.perf_counter(), _seconds(workers), _seconds(family.values()))


def _seconds(processes: Iterable[psutil.Process]) -> float:
    """What processors have worked for those that are there."""
    import psutil

    total = 0.0
    for each in processes:
        with suppress(psutil.Error):
            used = each.cpu_times()
            total += used.user + used.system
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()  # a launcher ends its workers
    try:
        process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _recipe(data: Path, folder: Path, size: Size) -> dict[str, Any]:
    return {
        "name": "ray",
        "data": {
            "dataset": DATASET,
            "uri": str(data),
            "resolution": size.resolution,
            "batch_size": size.batch_size,
            "augment": {"crop": "pad", "padding": 2},
        },
        "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": size.width, "stem": "cifar", "time_steps": 2},
        "optim": {"lr": 0.01, "epochs": 1},
        "run": {"workers": size.workers, "device": "cpu", "log_every": size.window, "max_failures": 0},
        "checkpoint": {"uri": str(folder / "checkpoints")},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
