"""The image's health check: python -m cluster.health [SERVICE...]. Exit code 1 if one does not say that it is well.

Named services must answer. Without names, those that listen must: a container that trains and serves nothing is well as
long as its process lives. Standard library only, since it is called again and again.
"""

from __future__ import annotations

import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

_HERE = "127.0.0.1"  # not cluster.settings.LOOPBACK: loading pydantic would take longer than the check


class Check(NamedTuple):
    """Where a service answers without a credential, with 200 while it is well."""

    port: int
    path: str


# Ray's agent, one on every node, asks its raylet, and the head's its control store too.
CHECKS = {"s3": Check(8333, "/healthz"), "mlflow": Check(5000, "/health"), "ray": Check(52365, "/api/healthz")}


def why_ill(check: Check, timeout: float = 5.0) -> str | None:
    """Ask once. None if it is well, "" if nothing listens, else what came instead of a 200 within `timeout` seconds."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{_HERE}:{check.port}{check.path}", timeout=timeout) as answer:
            return None if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except urllib.error.URLError as error:
        return "" if isinstance(error.reason, ConnectionRefusedError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def complaints(names: Sequence[str], checks: dict[str, Check]) -> list[str]:
    """Say what is wrong with these services, or with all that listen if none is named; empty if nothing is."""
    answers = {name: why_ill(checks[name]) for name in names or checks}
    ill = {name: why for name, why in answers.items() if why is not None and (why or names)}
    return [f"{name}: {why or 'nothing listens'}" for name, why in ill.items()]


def main(names: Sequence[str]) -> int:
    """Check, complain on stderr, and return the exit code."""
    if unknown := set(names) - set(CHECKS):
        sys.stderr.write(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(CHECKS)}.\n")
        return 2
    found = complaints(names, CHECKS)
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
