"""A trace of some training steps, as `run.profile` says: for Perfetto or chrome://tracing, and as a table.

Tracing looks on: it draws no random number and changes no result, but traced steps are slower. Files go beside the
run's checkpoints, and from there to MLflow at the run's end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, schedule

from pipelines.config import ProfileConfig
from pipelines.errors import ServiceError
from pipelines.loop.world import Outside, World

PROFILES = "profiles/"  # below a run's address
_ROWS = 30


class Profiler:
    """Traces the steps of one rank's process that the configuration names; `step` after each step of training."""

    def __init__(self, config: ProfileConfig, world: World, outside: Outside) -> None:
        self._world, self._outside, self._step = world, outside, 0
        self._trace: profile | None = None
        if config.steps and (world.rank == 0 or config.ranks == "all"):
            self._trace = _tracer(config, world.device.type, self._keep)
            self._trace.start()

    def step(self, step: int) -> None:
        """Optimiser step `step` of the run is done."""
        self._step = step
        if self._trace is not None:
            self._trace.step()

    def close(self) -> None:
        """End tracing. What a run that ends early has traced so far is kept."""
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    def _keep(self, trace: Any) -> None:
        """Store the trace and its table, and say where; a store that fails costs the trace, not the run."""
        name = f"{PROFILES}step-{self._step:09d}-rank-{self._world.rank}"
        try:
            with tempfile.TemporaryDirectory() as folder:
                files = {"trace.json.gz": Path(folder, "trace.json.gz"), "operators.txt": Path(folder, "operators.txt")}
                trace.export_chrome_trace(str(files["trace.json.gz"]))
                files["operators.txt"].write_text(_table(trace, self._world.device.type), encoding="utf-8")
                for kind, path in files.items():
                    self._outside.store.put(path, f"{name}.{kind}")
        except (ServiceError, OSError) as error:
            self._outside.say(f"the profile of step {self._step} could not be stored: {error}")
            return
        self._outside.say(f"profile {self._outside.store.uri}/{name}.trace.json.gz, and .operators.txt")


def _tracer(config: ProfileConfig, device: str, keep: Any) -> profile:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    # the step before the first starts the tracer, which takes a while
    wait = max(config.after - 1, 0)
    steps = schedule(wait=wait, warmup=config.after - wait, active=config.steps, repeat=1)
    return profile(activities=activities, schedule=steps, on_trace_ready=keep)


def _table(trace: Any, device: str) -> str:
    """The operators that take the most time of their own, one line each."""
    return str(trace.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=_ROWS))
