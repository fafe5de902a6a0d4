"""Attempts of a run: each time that workers start they claim the next number, and whoever has an older one is refused.

Below a run's address, `claims/0003` says who made the third attempt. It is created once and never changed, so two who
claim at the same moment get different numbers. A checkpoint carries its attempt's number (see `pipelines.checkpoint`):
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
    """One claim. `session` names the driver that it belongs to: restarts of its workers share it."""

    store: Store
    number: int
    session: str

    def check(self) -> None:
        """Raise Fenced where a newer attempt has been claimed."""
        newest = _numbers(self.store)[-1]
        if newest == self.number:
            return
        claim = json.loads(self.store.read(f"{_CLAIMS}{newest:04d}") or "{}")
        raise Fenced(
            f"Attempt {self.number} of the run at {self.store.uri} was overtaken by attempt {newest} "
            f"({_who(claim)}), which alone may write from now on. This one stores nothing more.",
            own=claim.get("session") == self.session,
        )


def claim(store: Store, session: str) -> Attempt:
    """Claim the next attempt of the run at `store`. Raises ServiceError where the store fails."""
    who = {
        "session": session,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "nonce": uuid.uuid4().hex,  # a store that repeats a lost request tells by it whose claim it finds
    }
    content = json.dumps(who).encode()
    number = 1 + max(_numbers(store), default=0)
    while not store.create(f"{_CLAIMS}{number:04d}", content):
        number += 1
    return Attempt(store, number, session)


def _numbers(store: Store) -> list[int]:
    return sorted(int(key.removeprefix(_CLAIMS)) for key in store.keys(_CLAIMS))


def _who(claim: dict[str, Any]) -> str:
    return f"process {claim.get('pid', '?')} on {claim.get('host', '?')}, since {claim.get('time', '?')}"
