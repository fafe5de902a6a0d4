"""Progress with an ETA on stderr: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from pipelines import logs

_LINE_EVERY_S = 10.0

Say = Callable[[str], None]  # tell the person who watches


class Progress:
    """Counts towards a total of `unit`s (0: unknown). A context manager; `done` is the count so far."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.done = 0
        self._total, self._label, self._unit = total, label, unit
        self._started = self._said = time.monotonic()
        terminal = sys.stderr.isatty() and not logs.as_json()
        self._bar = tqdm(total=total or None, desc=label, unit=unit, unit_scale=unit == "B") if terminal else None

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        line = tqdm.format_meter(
            self.done,
            self._total or None,  # type: ignore[arg-type]  # tqdm's stubs leave out that a total may be unknown
            self._said - self._started,
            prefix=self._label,
            unit=self._unit,
            unit_scale=self._unit == "B",
            ncols=100,
        )
        logs.line(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._said > self._started:
            # Whoever saw a line sees the last one too; short work says nothing.
            self._line()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
