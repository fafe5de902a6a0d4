"""A check: a function that returns (status, detail, advice) or raises, and the line that is made of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from pipelines.secrets import redacted

Status = Literal["pass", "warn", "fail"]
Outcome = tuple[Status, str, str]

LIMIT_S = 30.0


class Check(NamedTuple):
    """What a check has found: `detail` is what was seen, `advice` what to do about it; empty for a pass."""

    name: str
    status: Status
    detail: str
    advice: str


def examine(name: str, look: Callable[[], Outcome], limit_s: float | None = LIMIT_S) -> Check:
    """Run a check for at most so many seconds. One that raises, or takes longer, has failed.

    Without a limit it is run in this thread, and ends when it ends: it shows its own progress.
    """
    if limit_s is None:
        return Check(name, *_judged(look))
    answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    # a daemon: nothing can end a thread that waits for a network, and the command need not wait for it
    threading.Thread(target=lambda: answers.put(_judged(look)), name=f"doctor {name}", daemon=True).start()
    try:
        return Check(name, *answers.get(timeout=limit_s))
    except queue.Empty:
        advice = "Something does not answer: look at `agmm status`, the address and the network."
        return Check(name, "fail", f"no result within {limit_s:.0f} s.", advice)


def _judged(look: Callable[[], Outcome]) -> Outcome:
    try:
        status, detail, advice = look()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what this check has found)
        return "fail", "", _words_of(error)
    return status, _one_line(detail), _one_line(advice)


def _words_of(error: Exception) -> str:
    """Our own errors say what is wrong and what to do; others are named, since they were not foreseen."""
    if hasattr(error, "exit_code"):
        return _one_line(str(error))
    return _one_line(f"The check itself ended by {type(error).__name__}: {error}. What it looks at may be broken.")


def _one_line(text: str) -> str:
    """Without what is secret: libraries put into their errors what they were given."""
    return redacted(" ".join(text.split()))
