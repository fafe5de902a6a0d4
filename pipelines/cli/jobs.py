"""Jobs of a Ray head: submit, list, tell of one, show its log, stop. Beside `services` the one to know `cluster`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.output import JSON, say, show, table
from pipelines.cli.services import own_head, use_services
from pipelines.secrets import refuse_credentials

if TYPE_CHECKING:
    from cluster.jobs import Head, Job

_LONGEST = 60  # characters of a command in a table
_TRAINS = ("train", "tune")

_ADDRESS = click.option(
    "--address", metavar="URL", help="Job server; default RAY_API_SERVER_ADDRESS or that of `agmm up`."
)
_CA = click.option("--ca", metavar="FILE", help="Who signed its certificate, for https; default SSL_CERT_FILE.")


@contextmanager
def _head(address: str | None, ca: str | None) -> Iterator[Head]:
    """The job server that is meant. Services of `agmm up` stay out of the way of another's."""
    from cluster.jobs import connected, job_server

    if not address or job_server(address) == own_head():
        use_services()
    with connected(address, ca) as head:
        yield head


@click.command(context_settings={"ignore_unknown_options": True})
@_ADDRESS
@_CA
@click.option("--follow/--detach", "wait", default=True, help="Show the log and wait for the end, or do not.")
@click.option(
    "--with-code/--without-code",
    default=None,
    help="Send this agmm along, or use the head's; default: send it where the head has another.",
)
@click.option("--include", multiple=True, metavar="PATH", help="A file or folder of your own that the job needs.")
@click.option("--again", is_flag=True, help="Also while the same command runs.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str | None, ca: str | None, command: tuple[str, ...], **how: Any) -> int:
    """Run COMMAND as a Ray job and follow its log: agmm submit -- agmm train RECIPE. The exit code is the job's."""
    for recipe in (Path(word) for word in command if word.endswith((".yaml", ".yml"))):
        if recipe.is_file():  # it travels with the job
            refuse_credentials([recipe.read_text(encoding="utf-8", errors="replace")], str(recipe))
    from cluster.jobs import submit as submit_job
    from pipelines.version import code_version

    with _head(address, ca) as head:
        about = {"agmm_version": code_version()} | _recipe(command)
        return submit_job(head, command, shared=head.url == own_head(), about=about, say=say, **how)


def _recipe(command: tuple[str, ...]) -> dict[str, str]:
    """The recipe that a command names, as its user wrote it."""
    found = [word for before, word in pairwise(command) if before in _TRAINS]
    return {"recipe": found[0]} if found and not found[0].startswith("-") else {}


@click.group()
def jobs() -> None:
    """The jobs of a Ray head."""


@jobs.command("list")
@_ADDRESS
@_CA
@JSON
def jobs_list(address: str | None, ca: str | None, as_json: bool) -> None:
    """All jobs, newest first."""
    from cluster.jobs import jobs_list as ask

    with _head(address, ca) as head:
        found = ask(head)
    if as_json:
        click.echo(json.dumps({"jobs": [_fields(job) for job in found]}))
    else:
        table([_row(job) for job in found], "no jobs")


@jobs.command("logs")
@click.argument("job")
@click.option("--follow", is_flag=True, help="Until the job ends; the exit code is the job's.")
@_ADDRESS
@_CA
def jobs_logs(job: str, follow: bool, address: str | None, ca: str | None) -> int:
    """The whole log of JOB, so far."""
    from cluster.jobs import job_follow, job_logs

    with _head(address, ca) as head:
        if follow:
            return job_follow(head, job, say)
        click.echo(job_logs(head, job), nl=False)
    return 0


@jobs.command("stop")
@click.argument("job")
@click.option("--wait", is_flag=True, help="Until it has ended; one that trains saves a checkpoint first.")
@_ADDRESS
@_CA
def jobs_stop(job: str, wait: bool, address: str | None, ca: str | None) -> None:
    """Ask JOB to end."""
    from cluster.jobs import job_stop

    with _head(address, ca) as head:
        asked = job_stop(head, job, wait=wait, say=say)
    click.echo(("stopped" if wait else "stopping") if asked else "it had ended already")


@jobs.command("show")
@click.argument("job")
@_ADDRESS
@_CA
@JSON
def jobs_show(job: str, address: str | None, ca: str | None, as_json: bool) -> None:
    """What is known of JOB: who, what, how it went, and the run and checkpoint that came of it."""
    from cluster.jobs import job_logs, job_of

    with _head(address, ca) as head:
        found, log = job_of(head, job), job_logs(head, job)
    from pipelines.tracking.jobs import run_of_job

    run = run_of_job(job, log, say)
    known = {key: value for key, value in (_fields(found) | run).items() if value not in (None, "")}
    show(known, as_json)


def _fields(job: Job) -> dict[str, Any]:
    """What `--json` has of a job, times as text, what its metadata has beside the rest."""
    fields = {key: value for key, value in job._asdict().items() if key != "metadata"}
    times = {key: value.isoformat(timespec="seconds") for key in ("started", "ended") if (value := fields[key])}
    return job.metadata | fields | times


def _row(job: Job) -> dict[str, Any]:
    command = job.command if len(job.command) <= _LONGEST else job.command[: _LONGEST - 3] + "..."
    return {
        "id": job.id,
        "status": job.status,
        "exit code": "-" if job.exit_code is None else job.exit_code,
        "user": job.metadata.get("user", "-"),
        "started": f"{job.started:%Y-%m-%d %H:%M}" if job.started else "-",
        "took": str(job.ended - job.started).partition(".")[0] if job.started and job.ended else "-",
        "command": command.replace("\n", " "),
    }
