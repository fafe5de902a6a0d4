"""One worker tried out in a process of its own: what a step takes, in memory and in time.

A process of its own, since what was measured before would stay in its memory, one that takes too much is killed alone,
and torch takes its threads when it starts, as a worker under Ray does. The program reads its task from stdin and prints
JSON lines: `{"step": n}` as it goes, its result last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.config import RunConfig, parse_config
from pipelines.errors import ServiceError

if TYPE_CHECKING:
    import torch

WARM_UP = 3  # steps before the clock counts: loaders compile, kernels are compared
_LONGEST_S = 300.0  # of a calibration that has timed a few steps
_VALIDATION_BATCHES = 8


class Timing(NamedTuple):
    """Seconds of each step, images per second of validation, and the most bytes that it took."""

    device: str
    seconds: list[float]
    validation: float
    peak: int


def run(
    task: str, config: RunConfig, *, limit_s: float, on_step: Callable[[], object] = lambda: None, **more: Any
) -> Any:
    """Have the program do `task` (memory or time). Raises ServiceError where it fails, is killed or takes too long."""
    order = {"task": task, "config": config.model_dump(mode="json")} | more
    threads = {"OMP_NUM_THREADS": str(config.run.cpus_per_worker)}  # as Ray sets it
    command = [sys.executable, "-m", __name__]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **threads},
        ) as program,
    ):
        with _ended_after(program, limit_s) as late:
            result = _listen(program, order, on_step)
        if result is None:
            errors.seek(0)
            raise ServiceError(_why(program.wait(), late, errors.read(), limit_s))
        return result


@contextmanager
def _ended_after(program: subprocess.Popen[str], limit_s: float) -> Iterator[threading.Event]:
    """Kill a program when the context ends, or when its time is over, which the event tells."""
    late = threading.Event()

    def end() -> None:
        late.set()
        program.kill()

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        program.kill()


def _listen(program: subprocess.Popen[str], order: dict[str, Any], on_step: Callable[[], object]) -> Any:
    assert program.stdin is not None
    assert program.stdout is not None
    with suppress(BrokenPipeError):
        program.stdin.write(json.dumps(order))
        program.stdin.close()
    for line in program.stdout:
        said = json.loads(line)
        if "step" not in said:
            return said
        on_step()
    return None


def _why(code: int, late: threading.Event, errors: str, limit_s: float) -> str:
    if late.is_set():
        return f"A worker tried out alone was not done after {limit_s:.0f} s. Try again when the machine is less busy."
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"it ended with code {code}")
    killed = "it was killed, for lack of memory most likely; lower data.batch_size"
    return f"A worker tried out alone does not get through: {killed if code == -9 else last}."


def main() -> None:
    """Do what stdin asks for."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=out, flush=True)

    order = json.load(sys.stdin)
    config = parse_config(order["config"], origin="the trial")
    tell(_memory(config, order["batches"]) if order["task"] == "memory" else _time(config, order, tell))


def _memory(config: RunConfig, batches: list[int]) -> dict[str, Any]:
    """Peak bytes of steps on so many random images each, ascending; before them; of weights and optimiser's state."""
    import torch

    from pipelines.doctor.worker import Stepper, import_what_workers_do, peak_bytes

    device = _device(config)
    import_what_workers_do(config)
    base = peak_bytes(device)
    stepper = Stepper(config, device)
    peaks = []
    for batch in batches:
        stepper.step(batch)
        peaks.append([batch, peak_bytes(device)])
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() if device.type == "cuda" else None
    return {"device": device.type, "base": base, "peaks": peaks, "free": free} | stepper.state_bytes()


class _Enough(Exception):
    """All steps that were asked for are timed."""


class _Clock:
    """Hears the loop's report of each step, and ends the loop when there are `steps` after those that warm up."""

    def __init__(self, steps: int, batch: int, tell: Callable[[dict[str, Any]], None]) -> None:
        self._steps, self._batch, self._tell = steps, batch, tell
        self._began = time.monotonic()
        self._all: list[float] = []

    def hear(self, said: dict[str, Any]) -> None:
        """A report has the speed of its window, in which no validation is."""
        if "step" not in said:
            return
        self._all.append(self._batch / said["images_per_second"])
        self._tell({"step": len(self._all)})
        late = time.monotonic() - self._began > _LONGEST_S and len(self._all) > 2 * WARM_UP
        if late or len(self._all) == self._steps + WARM_UP:
            raise _Enough

    @property
    def seconds(self) -> list[float]:
        """Of each step but those that warm up, unless there are no others."""
        return self._all[WARM_UP:] or self._all


def _time(config: RunConfig, order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Seconds of each step of the real loop on the real data, and images that validation takes per second."""
    from pipelines.doctor.worker import peak_bytes, validation_speed
    from pipelines.loop.worker import run as run_loop
    from pipelines.loop.world import Outside, World
    from pipelines.storage import open_store

    device, folder = _device(config), Path(order["folder"])
    clock = _Clock(order["steps"], config.data.batch_size, tell)
    with tempfile.TemporaryDirectory(prefix="agmm-doctor-") as scratch, suppress(_Enough):
        outside = Outside(open_store(scratch), log=_unheard, progress=clock.hear, on_epoch=_unheard)
        run_loop(config, World(0, 1, device), outside, folder, "doctor")
    speed = validation_speed(config, device, folder, _VALIDATION_BATCHES)
    return {"device": device.type, "seconds": clock.seconds, "validation": speed, "peak": peak_bytes(device)}


def _device(config: RunConfig) -> torch.device:
    import torch

    return torch.device("cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu")


def _unheard(*_: object) -> None:
    """Nobody asks."""


if __name__ == "__main__":
    main()
