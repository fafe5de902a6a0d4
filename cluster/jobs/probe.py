"""Whether agmm's own code has to travel with a job: a head may have another agmm, or none."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import ServiceError, UserError
from cluster.jobs import code as installed
from cluster.jobs.bundle import code_files, runtime_environment
from cluster.jobs.client import Head
from cluster.jobs.follow import Say
from cluster.jobs.records import Job, job_of

_SCRIPT = "agmm_installed.py"
_USES_AGMM = re.compile(r"(.*/)?(agmm|python[\d.]*)$")
_WAIT_S = 120.0  # Ray starts a process, on a head that may be busy


class Code(NamedTuple):
    """What of agmm travels: files by their names, and whether the head has a program `agmm` already."""

    files: dict[str, Path]
    installed: bool


_NOTHING = Code({}, installed=True)


def code_to_send(head: Head, program: str, wanted: bool | None, *, shared: bool, say: Say) -> Code:
    """This agmm as `wanted`, or where it is None, if the head has another and the job's program may use it.

    shared: the head runs from this installation, so it is not asked.

    Asking costs a job of some seconds. Compiled libraries go along only where they would run. Raises UserError where
    packages that agmm needs are missing on the head.
    """
    if not (wanted if wanted is not None else _USES_AGMM.match(program) and not shared):
        return _NOTHING
    if shared:
        return Code(code_files(compiled=True), installed=True)
    theirs, ours = head_installation(head, say), installed.describe()
    if theirs["missing"]:
        raise UserError(
            f"The Ray head at {head.url} lacks packages that agmm needs: {', '.join(theirs['missing'])}. Its code can "
            "travel with a job, these cannot: start the head from an environment or image that has them. A command "
            "that needs none of them goes with --without-code."
        )
    if theirs["code"] == ours["code"] and not wanted:
        return _NOTHING
    return _chosen(theirs, ours, say)


def head_installation(head: Head, say: Say) -> dict[str, Any]:
    """What `code.describe` says on the head, by a job that leaves no trace there."""
    name = f"agmm-probe-{secrets.token_hex(4)}"
    say("asking the head which agmm it has")
    with runtime_environment({_SCRIPT: Path(installed.__file__)}, {}) as environment:
        head.client.submit_job(
            entrypoint=" ".join(["python", _SCRIPT, *_needed()]),
            submission_id=name,
            runtime_env=environment,
            metadata=metadata_of_user(),
        )
    job = _over(head, name)
    text = str(head.client.get_job_logs(name))
    head.client.delete_job(name)
    answer = next((line for line in reversed(text.splitlines()) if line.startswith("{")), "")
    if job.status != "SUCCEEDED" or not answer:
        raise ServiceError(f"The Ray head at {head.url} could not tell which agmm it has: {job.message} {text[-500:]}")
    found: dict[str, Any] = json.loads(answer)
    return found


def metadata_of_user() -> dict[str, str]:
    """Who submits, and where from."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return {"user": user, "host": socket.gethostname()}


def _needed() -> list[str]:
    """The distributions that agmm's core depends on."""
    try:
        lines = importlib.metadata.requires("agmm") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [match[0] for line in lines if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))]


def _chosen(theirs: Mapping[str, Any], ours: Mapping[str, Any], say: Say) -> Code:
    fits = all(theirs[key] == ours[key] for key in ("python", "platform"))
    code = Code(code_files(compiled=fits), installed=bool(theirs["version"]))
    size = sum(path.stat().st_size for path in code.files.values())
    say(f"the head has {_version(theirs)}, this is {_version(ours)}, which goes along: {size / 1e6:.1f} MB")
    if not fits:
        say(
            f"the head runs Python {theirs['python']} on {theirs['platform']}, this is {ours['python']} on "
            f"{ours['platform']}: compiled kernels stay here, and plain torch does their work there"
        )
    return code


def _over(head: Head, name: str) -> Job:
    deadline = time.monotonic() + _WAIT_S
    while not (job := job_of(head, name)).over:
        if time.monotonic() > deadline:
            head.client.stop_job(name)
            raise ServiceError(
                f"The Ray head at {head.url} has not started a job within {_WAIT_S:.0f} s; `agmm jobs list` shows what "
                "it does. --without-code does not ask."
            )
        time.sleep(0.1)
    return job


def _version(found: Mapping[str, Any]) -> str:
    return f"agmm {found['version']} ({found['code']})" if found["code"] else "no agmm"
