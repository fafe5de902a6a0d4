"""What a command says on stderr: for a person, or with AGMM_LOG=json for a collector of logs, one JSON object a line.

Each has `time` (UTC), `level` and `message`; while a run is open its `run_id`; and what else is known of a line, as
`step` and figures. Workers log through `logging` instead, see `on_ray.rank_log`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click

FORMAT = "AGMM_LOG"
_context: dict[str, Any] = {}  # of all lines; threads of the process share it


def as_json() -> bool:
    """Whether lines are for a machine."""
    return os.environ.get(FORMAT, "") == "json"


def line(text: str, *, level: str = "INFO", **fields: Any) -> None:
    """Write a line, if stderr takes it: what is said is never worth the work. `fields` are for machines alone."""
    if as_json():
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": time, "level": level, "message": text, **_context, **fields})
    with suppress(OSError):
        click.echo(text, err=True)


@contextmanager
def of_run(run_id: str) -> Iterator[None]:
    """What is said meanwhile is of this run."""
    _context["run_id"] = run_id
    try:
        yield
    finally:
        _context.pop("run_id", None)
