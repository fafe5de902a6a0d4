"""A job's log as it grows, over interruptions of the line to its head, and the exit code at its end."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from cluster.errors import ServiceError
from cluster.jobs.client import Head, no_job

Say = Callable[[str], None]
INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
_AWAY_S = 300.0  # how long a head may not answer, before following it is given up
_PAUSE_S = 0.5
_HEARTBEAT_S = 20.0  # a line that is dead without a word is found within this
_NOT_FOUND = 404
_GATEWAY = re.compile(r"status code 5\d\d")  # what stands before a head that is away answers so


def follow(head: Head, name: str, say: Say) -> int:
    """Print a job's log from its beginning until the job ends; its exit code.

    A command ended by signal n gives 128 + n, a stopped job or Ctrl-C here 130 (the job goes on), a job that could not
    start 1. A head that does not answer is tried again for five minutes, and nothing is printed twice.

    Raises UserError for an unknown job; ServiceError where the head stays away.
    """
    try:
        details = _ended(head, name, say)
    except KeyboardInterrupt:
        say(f"{name} goes on. Follow: agmm jobs logs --follow {name}. Stop: agmm jobs stop {name}.")
        return INTERRUPTED
    return report(name, details, say)


def report(name: str, details: Any, say: Say) -> int:
    """Say how a job ended, and give its exit code. `details` are Ray's."""
    from ray.job_submission import JobStatus

    if details.status == JobStatus.SUCCEEDED:
        say(f"{name} succeeded")
        return 0
    if details.status == JobStatus.STOPPED:
        say(f"{name} was stopped")
        return INTERRUPTED
    code = details.driver_exit_code or 1
    say(f"{name} failed: {(details.message or '').partition(', last available logs')[0]}")
    return code if code > 0 else 128 - code


def _ended(head: Head, name: str, say: Say) -> Any:
    """Print until the job has ended and all of its log is printed; Ray's details of it."""
    from aiohttp import ClientError
    from requests import RequestException

    printed, away_since = _Printed(), 0.0
    while True:
        try:
            whole = asyncio.run(_print_log(head, name, printed))
            details = head.client.get_job_info(name)  # the log ends a moment before
            away_since = 0.0
            if whole and details.status.is_terminal():
                return details
        except (ClientError, RequestException, ConnectionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _GATEWAY.search(str(error)):
                raise
            away_since = away_since or _told(say, head, error)
            if time.monotonic() - away_since > _AWAY_S:
                raise ServiceError(
                    f"The Ray head at {head.url} has not answered for {_AWAY_S / 60:.0f} minutes ({error}). {name} may "
                    f"go on: agmm jobs logs --follow {name}."
                ) from error
        time.sleep(_PAUSE_S)


def _told(say: Say, head: Head, error: Exception) -> float:
    reason = str(error) or type(error).__name__
    say(f"The line to the Ray head at {head.url} broke ({reason}); trying again for {_AWAY_S / 60:.0f} minutes.")
    return time.monotonic()


class _Printed:
    """What went to stdout already, in characters: a new stream begins at the log's beginning."""

    def __init__(self) -> None:
        self._total = self._stream = 0

    def restart(self) -> None:
        self._stream = 0

    def write(self, text: str) -> None:
        new = text[max(0, self._total - self._stream) :]
        self._stream += len(text)
        self._total = max(self._total, self._stream)
        sys.stdout.write(new)
        sys.stdout.flush()


async def _print_log(head: Head, name: str, printed: _Printed) -> bool:
    """Print what the stream brings; False where it broke off before the log's end.

    Ray's own `tail_job_logs` does not notice a line that is dead without a word.
    """
    from aiohttp import ClientSession, WSCloseCode, WSMsgType, WSServerHandshakeError

    printed.restart()
    stream = f"{head.url}/api/jobs/{name}/logs/tail"
    async with ClientSession(headers=head.headers, trust_env=True) as session:
        try:
            socket = await session.ws_connect(stream, ssl=head.tls, heartbeat=_HEARTBEAT_S, max_msg_size=0)
        except WSServerHandshakeError as error:
            if error.status == _NOT_FOUND:
                raise no_job(head.url) from error
            raise
        async with socket:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    printed.write(message.data)
            return socket.close_code not in (None, WSCloseCode.ABNORMAL_CLOSURE)
