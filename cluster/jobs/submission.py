"""Run a command as a job of a Ray head: with the code and files that it needs, once at a time, and no secret."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import UserError
from cluster.jobs.bundle import Bundle, bundle, refuse_large, runtime_environment
from cluster.jobs.client import Head
from cluster.jobs.follow import Say, follow
from cluster.jobs.leaks import known_secrets, refuse_secrets
from cluster.jobs.probe import Code, code_to_send, metadata_of_user
from cluster.jobs.records import Job, job_of, jobs_list
from cluster.settings import JOB_STOP_WAIT

_PROGRAM, _MODULE = "agmm", ["python", "-m", "pipelines.cli"]


def submit(
    head: Head,
    command: Sequence[str],
    *,
    with_code: bool | None = None,
    shared: bool = False,
    include: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    again: bool = False,
    wait: bool = True,
    say: Say = print,
) -> int:
    """Run `command` as a job and return its exit code; with `wait` off, 0 once it is accepted.

    Existing *.yaml or *.yml files among the arguments, and what is included, travel with the job. Its log goes to
    stdout, everything else to `say`. For the exit code see `follow`.

    with_code, shared: whether agmm's own code goes along, see `code_to_send`.
    about: what else is told of the job in its metadata, which everyone sees.
    again: whether the same command may run while a job of this user with it does.

    Raises UserError for what may not be sent, or where the same command runs already; ServiceError for no answer.
    """
    if not command:
        raise UserError("No command to submit. Write it after --, for example: agmm submit -- agmm train RECIPE.")
    sent = bundle(command, include)
    metadata = metadata_of_user() | dict(about or {})
    _check_secrets(command, sent, metadata)
    code = code_to_send(head, command[0], with_code, shared=shared, say=say)
    refuse_large(sent.files | code.files)
    name = _name(head, digest_of(sent, metadata["user"]), again)
    with runtime_environment(sent.files, code.files) as environment:
        words = on_head(sent.words, code)
        _submit(head, name, words, {"env_vars": dict(JOB_STOP_WAIT), **environment}, metadata)
    say(f"Submitted {name}: {shlex.join(command)}")
    return follow(head, name, say) if wait else 0


def digest_of(sent: Bundle, user: str) -> str:
    """What makes two submissions the same: who, the command as it is on the head, and the files that go along."""
    total = hashlib.sha256(json.dumps([user, sent.words]).encode())
    for name, path in sorted(sent.files.items()):
        total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return total.hexdigest()[:8]


def _name(head: Head, digest: str, again: bool) -> str:
    """A job's id: the digest, and how often it was submitted. Two who choose at once choose the same; Ray takes one."""
    stem = f"agmm-{digest}-"
    before = {job.id: job for job in jobs_list(head) if job.id.startswith(stem)}
    numbers = [int(number) for name in before if (number := name.removeprefix(stem)).isdecimal()]
    running = [job for job in before.values() if not job.over]
    if running and not again:
        raise _runs(running[0])
    return f"{stem}{max(numbers, default=0) + 1}"


def _submit(head: Head, name: str, words: Sequence[str], environment: dict[str, Any], metadata: dict[str, str]) -> None:
    try:
        head.client.submit_job(
            entrypoint=shlex.join(words), submission_id=name, runtime_env=environment, metadata=metadata
        )
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise
        raise _runs(job_of(head, name)) from error


def _runs(job: Job) -> UserError:
    since = f"{job.started:%Y-%m-%d %H:%M} UTC" if job.started else "a moment ago"
    return UserError(
        f"The same command runs as {job.id} since {since}. Follow it: agmm jobs logs --follow {job.id}. Stop it: "
        f"agmm jobs stop {job.id}. To run it twice: --again."
    )


def on_head(words: list[str], code: Code) -> list[str]:
    """A command as the head can run it: without agmm it has the code by now, and no program of that name."""
    return words if code.installed or words[0] != _PROGRAM else [*_MODULE, *words[1:]]


def _check_secrets(command: Sequence[str], sent: Bundle, metadata: Mapping[str, str]) -> None:
    texts = {f"Word {number} of the command": word.encode() for number, word in enumerate(command, 1)}
    texts |= {f"The job's {key}": value.encode() for key, value in metadata.items()}
    texts |= {f"The file {name}": path.read_bytes() for name, path in sent.files.items()}
    refuse_secrets(texts, known_secrets())
