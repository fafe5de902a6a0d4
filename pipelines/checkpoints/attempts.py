"""Attempts of a run: each time that workers start they claim the next number, and whoever has an older one is refused.

Below a run's address, `claims/0003` says who made the third attempt. It is created once and never changed, so two who
claim at the same moment get different numbers. A checkpoint carries its attempt's number (see `checkpoint`):
what an older attempt commits after a newer one has claimed sorts before all that the newer one commits.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import Fenced
from pipelines.storage import Store

_CLAIMS = "claims/"


@dataclass(frozen=True)
class Attempt:
    """One claim. `session` names the driver, with its Ray job before a slash: restarts of its workers share it."""

    store: Store
    number: int
    session: str
    nonce: str

    def check(self) -> None:
        """Raise Fenced where a newer attempt has been claimed, or where the store let another claim the same number."""
        newest = _numbers(self.store)[-1]
        found = _read(self.store, newest)
        if found.get("nonce") != self.nonce:
            raise Fenced(
                f"Attempt {self.number} of the run at {self.store.uri} was overtaken by attempt {newest} "
                f"({_who(found)}), which alone may write from now on. This one stores nothing more.",
                own=found.get("session") == self.session,
            )


def claim(store: Store, session: str) -> Attempt:
    """Claim the next attempt of the run at `store`.

    Raises Fenced where another driver has claimed after this one did: what it overtook may not take the run back by
    starting its workers again. Raises ServiceError where the store fails.
    """
    numbers = _numbers(store)
    _refuse_overtaken(store, numbers, session)
    nonce = uuid.uuid4().hex
    who = {
        "session": session,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "nonce": nonce,  # a store that repeats a lost request tells by it whose claim it finds
    }
    content = json.dumps(who).encode()
    number = 1 + max(numbers, default=0)
    while not store.create(f"{_CLAIMS}{number:04d}", content):
        number += 1
    return Attempt(store, number, session, nonce)


def _refuse_overtaken(store: Store, numbers: list[int], session: str) -> None:
    claims = [_read(store, number) for number in numbers]
    if any(claim.get("session") == session for claim in claims) and claims[-1].get("session") != session:
        raise Fenced(
            f"The run at {store.uri} was taken over by attempt {numbers[-1]} ({_who(claims[-1])}). This driver lets "
            "it go on, and starts no workers again."
        )


def _read(store: Store, number: int) -> dict[str, Any]:
    claim: dict[str, Any] = json.loads(store.read(f"{_CLAIMS}{number:04d}") or "{}")
    return claim


def _numbers(store: Store) -> list[int]:
    return sorted(int(key.removeprefix(_CLAIMS)) for key in store.keys(_CLAIMS))


def _who(claim: dict[str, Any]) -> str:
    job = str(claim.get("session", "")).rpartition("/")[0]
    process = f"process {claim.get('pid', '?')} on {claim.get('host', '?')}, since {claim.get('time', '?')}"
    return f"{process}, job {job}" if job else process
