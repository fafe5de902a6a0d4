"""Named points of the code that `AGMM_FAULTS` turns into a crash, a delay or an error, so that tests can try recovery.

`AGMM_FAULTS="checkpoint.upload=crash@3, metrics.send=error, data.batch=sleep:30@2"`: at the third upload the process
kills itself, every sending of metrics fails, the second batch waits 30 seconds. Without `@N` the fault strikes each
time. Names may end in `*`. Unset, a point costs a comparison.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipelines.errors import UserError

_VARIABLE = "AGMM_FAULTS"


class InjectedFault(OSError):
    """What `=error` raises: an OSError, as a disk or a network would."""


@dataclass(frozen=True)
class _Fault:
    point: str
    action: str
    seconds: float
    at: int  # 0: each time


def _parse(text: str) -> tuple[_Fault, ...]:
    return tuple(_parse_one(part.strip()) for part in text.split(",") if part.strip())


def _parse_one(text: str) -> _Fault:
    point, _, rest = text.partition("=")
    action, _, at = rest.partition("@")
    action, _, seconds = action.partition(":")
    try:
        fault = _Fault(point, action, float(seconds or 0), int(at or 0))
    except ValueError:
        fault = _Fault(point, "", 0.0, 0)
    if fault.action not in ("crash", "sleep", "error"):
        raise UserError(
            f"{_VARIABLE} has {text!r}. Write POINT=crash, POINT=error or POINT=sleep:SECONDS, with @N or not."
        )
    return fault


_faults = _parse(os.environ.get(_VARIABLE, ""))
_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """A place where a fault may be injected; nothing happens unless `AGMM_FAULTS` names it."""
    if not _faults:
        return
    _passed[name] += 1
    for fault in _faults:
        if fnmatchcase(name, fault.point) and fault.at in (0, _passed[name]):
            _strike(fault, name)


def _strike(fault: _Fault, name: str) -> None:
    if fault.action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "sleep":
        time.sleep(fault.seconds)
    else:
        raise InjectedFault(f"injected at {name}")
