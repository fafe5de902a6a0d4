"""Run commands as jobs of a Ray head, through its job server: submit and follow, list, show the log, stop.

A job gets its environment from the head, which has what the services need. No secret and no variable is sent with it.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib.metadata
import logging
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import ServiceError, UserError
from cluster.settings import JOB_STOP_WAIT

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RECIPES = (".yaml", ".yml")


class Job(NamedTuple):
    """One job as the head knows it. Times are in UTC; `exit_code` is None unless the job's command ended by itself."""

    id: str
    status: str
    command: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None


def submit(
    command: Sequence[str], *, address: str | None = None, follow: bool = True, say: Callable[[str], None] = print
) -> int:
    """Run `command` as a job and return its exit code; with `follow` off, 0 once it is accepted.

    `address` is the job server's URL, by default RAY_API_SERVER_ADDRESS. Existing *.yaml or *.yml files among the
    arguments travel with the job. The job's log goes to stdout, everything else to `say`. A command ended by signal n
    gives 128 + n, a stopped job or Ctrl-C here 130 (the job goes on), a job that could not start 1.
    Raises UserError (no address, no access) or ServiceError (no answer).
    """
    if not command:
        raise UserError("No command to submit. Write it after --, for example: agmm submit -- agmm train RECIPE.")
    with _client(address) as client:
        name = f"agmm-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"
        with _staged(command) as (words, folder):
            runtime: dict[str, Any] = {"env_vars": JOB_STOP_WAIT}  # for a head that was not started with it
            if folder is not None:
                runtime["working_dir"] = str(folder)
            client.submit_job(
                entrypoint=shlex.join(words), submission_id=name, runtime_env=runtime, metadata=_metadata()
            )
        say(f"Submitted {name}: {shlex.join(command)}")
        return _watch(client, name, say) if follow else 0


def jobs_list(address: str | None = None) -> list[Job]:
    """List every job that the head knows, the newest first."""
    with _client(address) as client:
        jobs = [_job(details) for details in client.list_jobs()]
    return sorted(jobs, key=lambda job: job.started or datetime.min.replace(tzinfo=UTC), reverse=True)


def job_logs(name: str, address: str | None = None) -> str:
    """Return the whole log of a job, so far."""
    _check_name(name)
    with _client(address) as client:
        return str(client.get_job_logs(name))


def job_stop(name: str, address: str | None = None) -> bool:
    """Ask a job to end. False if it had ended already."""
    _check_name(name)
    with _client(address) as client:
        return bool(client.stop_job(name))


def _check_name(name: str) -> None:
    """Refuse what is no job's id: it becomes part of an address, and `../` would lead to another page of the head."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no id of a job: letters, digits, dots, dashes, underscores. See `agmm jobs list`."
        )


@contextmanager
def _client(address: str | None) -> Iterator[JobSubmissionClient]:
    """Connect a client; what goes wrong while it is used becomes an error that says what to do."""
    url = _url(address)
    _check_answers(url)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        with _environment_address(url):
            client = JobSubmissionClient(url, headers=_authorization(url))
        yield client
    except AuthenticationError as error:
        raise UserError(
            f"The Ray head at {url} refused the token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file "
            "with its token. For a head that `agmm up` started, use the same AGMM_HOME."
        ) from error
    except BrokenPipeError:
        raise  # whoever read our output has left; the head is well
    except ConnectionError as error:
        raise _no_head(url, error) from error
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise UserError(
                f"The Ray head at {url} knows no such job. `agmm jobs list` shows those it knows."
            ) from error
        raise ServiceError(f"The Ray head at {url} refused: {error}") from error


def _url(address: str | None) -> str:
    """Find the job server's URL. Ray would take an address without a scheme for that of the head's object store."""
    chosen = address or os.environ.get(_ADDRESS)
    if not chosen:
        raise UserError(
            f"No Ray head is known: {_ADDRESS} is not set. Start one with `agmm up`, or name one with --address URL."
        )
    url = chosen if "://" in chosen else f"http://{chosen}"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{chosen!r} is not the address of a job server. It starts with http:// or https://.")
    return url.rstrip("/")


def _authorization(url: str) -> dict[str, str]:
    """Read the token as Ray would, at this moment: Ray looks once, when a process first imports it.

    It goes to the head that the environment names, and to no other: `--address` may name a stranger's.
    """
    if url != _url(os.environ.get(_ADDRESS, url)):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(f"RAY_AUTH_TOKEN_PATH names a file that cannot be read: {error}.") from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_answers(url: str) -> None:
    """Ray's client has no timeout of its own: a host that drops packets would hold it for minutes."""
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=10).close()  # noqa: S310 (`_url` let http and https pass)
    except urllib.error.HTTPError as answer:
        answer.close()  # 401 without the token: somebody is there, and the client will say who it is
    except (OSError, ValueError) as error:
        raise _no_head(url, error) from error


def _no_head(url: str, error: Exception) -> ServiceError:
    return ServiceError(
        f"No Ray head answers at {url} ({error}). Start one with `agmm up`, or name one with --address."
    )


@contextmanager
def _environment_address(url: str) -> Iterator[None]:
    """Ray lets this variable win over the address that its client is given."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = url
    try:
        yield
    finally:
        os.environ.pop(_ADDRESS)
        if before is not None:
            os.environ[_ADDRESS] = before


@contextmanager
def _staged(command: Sequence[str]) -> Iterator[tuple[list[str], Path | None]]:
    """Copy the command's recipe files into a folder to be sent along, and name the copies. None without recipes."""
    recipes = {word: Path(word) for word in command if word.endswith(_RECIPES) and Path(word).is_file()}
    if not recipes:
        yield list(command), None
        return
    with tempfile.TemporaryDirectory(prefix="agmm-job-") as folder:
        names: dict[str, str] = {}
        for word, path in recipes.items():
            # Two recipes of different folders may have one name.
            name = path.name if path.name not in names.values() else f"{len(names)}-{path.name}"
            shutil.copyfile(path, Path(folder, name))
            names[word] = name
        yield [names.get(word, word) for word in command], Path(folder)


def _metadata() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    try:
        version = importlib.metadata.version("agmm")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"user": user, "agmm_version": version}


def _watch(client: JobSubmissionClient, name: str, say: Callable[[str], None]) -> int:
    """Print the log until the job ends; its exit code."""
    try:
        try:
            asyncio.run(_print_log(client, name))
        except RuntimeError as error:
            say(f"The log's stream broke ({error}); waiting for the end. `agmm jobs logs {name}` shows the whole log.")
        return _exit_code(client, name, say)
    except KeyboardInterrupt:
        say(f"{name} goes on. Follow: agmm jobs logs {name}. Stop: agmm jobs stop {name}.")
        return INTERRUPTED


async def _print_log(client: JobSubmissionClient, name: str) -> None:
    async for text in client.tail_job_logs(name):
        sys.stdout.write(text)
        sys.stdout.flush()


def _exit_code(client: JobSubmissionClient, name: str, say: Callable[[str], None]) -> int:
    """Wait for the end (the log ends a moment before), report it and give the exit code."""
    from ray.job_submission import JobStatus

    while not (details := client.get_job_info(name)).status.is_terminal():
        time.sleep(0.5)
    if details.status == JobStatus.SUCCEEDED:
        say(f"{name} succeeded")
        return 0
    if details.status == JobStatus.STOPPED:
        say(f"{name} was stopped")
        return INTERRUPTED
    code = details.driver_exit_code or 1
    say(f"{name} failed: {(details.message or '').partition(', last available logs')[0]}")
    return code if code > 0 else 128 - code


def _job(details: Any) -> Job:
    """Convert Ray's JobDetails, whose times are in milliseconds."""
    started, ended = (
        datetime.fromtimestamp(each / 1000, UTC) if each else None for each in (details.start_time, details.end_time)
    )
    return Job(
        id=details.submission_id or details.job_id or "?",
        status=str(details.status.value),
        command=details.entrypoint,
        started=started,
        ended=ended,
        exit_code=details.driver_exit_code,
    )
