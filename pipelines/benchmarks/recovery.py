"""From `kill -9` of a worker to the next optimiser step, in a small run of `agmm train` with two workers."""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.benchmarks import DATASET, circumstances, row, small_data
from pipelines.errors import ServiceError, UserError
from pipelines.progress import Progress, Say

if TYPE_CHECKING:
    import psutil

_STARTED = re.compile(r"2 workers started in ([\d.]+) s: (.*)")  # see `pipelines.on_ray.startup`
_STEP = re.compile(r"step \d+/")
_PATIENCE_S = 180.0  # for a start
_END_S = 60.0
_FOREIGN = ("AGMM_", "AWS_", "MLFLOW_", "RAY_")


def bench(kills: int, say: Say) -> dict[str, Any]:
    """Kill a worker so many times in one run; returns medians by part, and every kill's parts in seconds.

    `detect` lasts until new workers are asked for, `processes` until their code runs; the rest is ours.

    Raises UserError without psutil, and ServiceError where the run ends or does not go on.
    """
    try:
        import psutil  # noqa: F401
    except ImportError as error:
        raise UserError("`agmm bench recovery` needs psutil: pip install 'agmm[service]'.") from error
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch, _run(Path(scratch), kills) as run:
        say("starting a run of two workers")
        run.wait(_STARTED)
        found = []
        with Progress(kills, "kills", "kill") as progress:
            for _ in range(kills):
                found.append(_kill(run))
                say("killed a worker: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in found[-1].items()))
                progress.advance()
    parts = {name: [each.get(name, 0.0) for each in found] for name in found[0]}
    rows = [row(name, median(seconds), "s") for name, seconds in parts.items()]
    return {"rows": rows, "kills": found, **circumstances()}


def _kill(run: _Run) -> dict[str, float]:
    """Kill one worker in the middle of training; seconds of each part until the next step, and of all."""
    run.wait(_STEP)
    victim = random.choice(run.workers())  # noqa: S311 (no secret)
    began = time.monotonic()
    victim.kill()
    at, found = run.wait(_STARTED)
    asked = float(found[1])
    parts = {name: float(seconds) for name, _, seconds in (text.rpartition(" ") for text in found[2].split(", "))}
    return {"detect": max(at - began - asked, 0.0)} | parts | {"total": at - began}


@dataclass
class _Run:
    """A running `agmm train`, and the lines that it says with the times when they came."""

    process: subprocess.Popen[str]
    lines: queue.Queue[tuple[float, str]]
    said: list[str]

    def wait(self, pattern: re.Pattern[str]) -> tuple[float, re.Match[str]]:
        """The next line with the pattern, and when it came. Raises ServiceError where none comes."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                at, line = self.lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise ServiceError(self._explained(f"said nothing of the kind for {_PATIENCE_S:.0f} s")) from None
            if not line:
                raise ServiceError(self._explained("ended"))
            self.said.append(line)
            if found := pattern.search(line):
                return at, found

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers."""
        found = [process for process in _family(self.process.pid) if "RayTrainWorker" in _title(process)]
        if not found:
            raise ServiceError(self._explained("has no worker that can be seen from here"))
        return found

    def read(self) -> None:
        """Take lines until the end, which is an empty one. In a thread of its own."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put((time.monotonic(), line))
        self.lines.put((time.monotonic(), ""))

    def _explained(self, what: str) -> str:
        return f"The run that was to be measured {what}. It said last:\n{''.join(self.said[-10:])}"


@contextmanager
def _run(folder: Path, kills: int) -> Iterator[_Run]:
    """A run that lasts long enough, in a home of its own on a Ray of its own; no process of it stays."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(small_data(folder), folder, kills)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "train", str(recipe)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "AGMM_HOME": str(folder / "home"), "AGMM_CACHE": str(folder / "cache")},
    )
    run = _Run(process, queue.Queue(), [])
    reader = threading.Thread(target=run.read, daemon=True)
    reader.start()
    try:
        yield run
    finally:
        _end(process)
        reader.join(timeout=_END_S)  # it ends with the last process that could write


def _recipe(data: Path, folder: Path, kills: int) -> dict[str, Any]:
    return {
        "name": "recovery",
        "data": {
            "dataset": DATASET,
            "uri": str(data),
            "resolution": 16,
            "batch_size": 4,
            "augment": {"crop": "pad", "padding": 2},
        },
        "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": 4, "stem": "cifar", "time_steps": 2},
        "optim": {"lr": 0.01, "epochs": 10_000},
        "run": {"workers": 2, "device": "cpu", "log_every": 10, "max_failures": kills},
        "checkpoint": {"uri": str(folder / "checkpoints"), "every": 50},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the run to stop, and end what is left of it after its time."""
    import psutil

    family = [psutil.Process(process.pid), *_family(process.pid)]
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=_END_S)
    for each in left:
        each.kill()
    process.wait()


def _family(pid: int) -> list[psutil.Process]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
