"""Which signal asked the process to end: Ctrl-C and all others arrive as the same KeyboardInterrupt."""

from __future__ import annotations

import signal

_asked: list[int] = []


def note(number: int) -> None:
    """Called by a signal's handler."""
    _asked.append(number)


def take_cause() -> str:
    """The first signal since the last call, as a run's cause; SIGINT where no handler noted one."""
    number = _asked[0] if _asked else int(signal.SIGINT)
    _asked.clear()
    return "SIGINT (Ctrl-C)" if number == signal.SIGINT else signal.Signals(number).name
