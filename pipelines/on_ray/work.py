"""What a driver gives its workers to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig


@dataclass(frozen=True)
class Work:
    """A run to train: plain values and handles of Ray, since it travels to other machines."""

    config: RunConfig  # resolved
    run_id: str  # names the run's checkpoints
    session: str  # of the driver: restarts of its workers share it
    folder: Path  # of the data set, on the driver's machine
    code_version: str
    queue: Any  # where workers tell how it goes, see `board`
