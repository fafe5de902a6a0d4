"""The live view of a search: its running trials, the best so far, what is left of the budget, and when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines import logs
from pipelines.progress import clock

_PLAIN_EVERY_S = 30.0  # without a terminal
_DRAW_EVERY_S = 0.5
_WIDTH = 100  # without a terminal
_ANY_WIDTH = 10_000
_CANNOT_DRAW = (OSError, ValueError)  # stderr on a full disk, of a terminal that is gone, or closed


@dataclass
class Row:
    """A running trial, as the table shows it."""

    number: int
    values: Mapping[str, Any]
    epoch: int = 0
    value: float | None = None  # of the first objective
    speed: float | None = None
    eta: float | None = None  # seconds to its full length


@dataclass
class Standing:
    """Where a search stands."""

    ended: int
    trials: int
    best: str  # in words; empty where there is none yet
    budget: str  # in words
    eta: float | None  # seconds
    rows: Sequence[Row] = field(default_factory=list)


def describe(values: Mapping[str, Any]) -> str:
    """`leak 0.31, threshold 1.2`."""
    return ", ".join(f"{name} {cell(value)}" for name, value in values.items())


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich's own would end the program, and close its stdout."""
        raise BrokenPipeError


class LiveView:
    """Draws a standing: a table that stays in its place on a terminal, now and then a few lines elsewhere."""

    def __init__(self, title: str, objective: str) -> None:
        self._title, self._objective = title, objective
        self._console = _Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console.width = _WIDTH
        self._live: Live | None = None
        self._started = time.monotonic()
        self._drawn = -_PLAIN_EVERY_S

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep a place for the table while the context lasts."""
        live = Live(console=self._console, auto_refresh=False, transient=True)
        with suppress(*_CANNOT_DRAW):
            if self._console.is_terminal:
                live.start()
                self._live = live
        try:
            yield
        finally:
            self._live = None
            with suppress(*_CANNOT_DRAW):
                live.stop()

    def say(self, line: str) -> None:
        """Show a line, above the table where there is one."""
        with suppress(*_CANNOT_DRAW):
            if self._live is not None:
                self._console.print(line, markup=False)
            else:
                logs.line(line)

    def draw(self, standing: Callable[[], Standing]) -> None:
        """Draw it anew, unless that was done a moment ago."""
        now = time.monotonic()
        if sys.stderr is None or now - self._drawn < (_DRAW_EVERY_S if self._live is not None else _PLAIN_EVERY_S):
            return
        self._drawn = now
        with suppress(*_CANNOT_DRAW):
            self._put(standing())

    def _put(self, standing: Standing) -> None:
        view = Group(Text(self._headline(standing)), *self._tables(standing))
        if self._live is not None:
            self._live.update(view, refresh=True)
        else:
            self._console.print(view)

    def _tables(self, standing: Standing) -> list[Table]:
        """The running trials, if there are any: a column for each value, or one for all where these have no room."""
        if not standing.rows:
            return []
        table = _table(standing.rows, self._objective, list(standing.rows[0].values))
        needed = self._console.measure(table, options=self._console.options.update(width=_ANY_WIDTH)).maximum
        return [table if needed <= self._console.width else _table(standing.rows, self._objective, [])]

    def _headline(self, standing: Standing) -> str:
        gone = clock(time.monotonic() - self._started)
        eta = "ETA -" if standing.eta is None else f"ETA {clock(standing.eta)}"
        lines = [
            f"{self._title}: {standing.ended} of {standing.trials} trials have ended, {len(standing.rows)} run",
            f"best: {standing.best or 'none yet'}",
            f"{gone} gone, {eta}, left: {standing.budget}",
        ]
        return "\n".join(lines)


def _table(rows: Sequence[Row], objective: str, names: list[str]) -> Table:
    """With a column for each name; without names, with a last column of all values in words."""
    table = Table(box=None, pad_edge=False)
    for heading in ("trial", *names, "epoch", objective, "images/s", "ETA"):
        table.add_column(heading, justify="right", no_wrap=True)
    if not names:
        table.add_column("drawn", overflow="fold")
    for row in rows:
        values = [cell(row.values.get(name)) for name in names]
        eta = "-" if row.eta is None else clock(row.eta)
        speed = "-" if row.speed is None else f"{row.speed:.0f}"
        words = [] if names else [describe(row.values)]
        table.add_row(str(row.number), *values, str(row.epoch), cell(row.value), speed, eta, *words)
    return table
