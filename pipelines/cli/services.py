"""The composition root: the commands, and the only module, that know `cluster` beside `pipelines`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pipelines.cli.output import say, table

_ADDRESSES = ("AGMM_STORE", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def use_services() -> None:
    """Point boto3, MLflow and Ray at the services of `agmm up`, unless the user has chosen others."""
    if any(name in os.environ for name in _ADDRESSES):
        return
    from cluster.environment import activate
    from pipelines.home import home

    activate(home())


def own_head() -> str:
    """The job server of `agmm up`; empty where none runs."""
    from cluster.environment import environment
    from pipelines.home import home

    return environment(home()).get("RAY_API_SERVER_ADDRESS", "")


@click.command()
@click.option("--s3-port", type=int, default=8333, show_default=True)
@click.option("--mlflow-port", type=int, default=5000, show_default=True)
@click.option("--dashboard-port", type=int, default=8265, show_default=True)
@click.option("--ray-port", type=int, default=6379, show_default=True)
@click.option("--tls/--no-tls", default=None, help="S3 and MLflow by HTTPS only, with a certificate made here.")
@click.option("--host", metavar="ADDRESS", help="Where S3 and MLflow listen; default 127.0.0.1, any other needs --tls.")
@click.option(
    "--metrics", is_flag=True, default=None, help="Serve Ray's and the runs' metrics to whoever asks on loopback."
)
def up(**options: Any) -> None:
    """Start an S3 server, MLflow and a Ray head with its dashboard, on loopback. Port 0 takes any free one.

    With --host, other machines reach S3 and MLflow; the Ray head stays on loopback.
    """
    from pydantic import ValidationError

    from cluster.credentials import MLFLOW_USER, CredentialFiles
    from cluster.environment import export_lines
    from cluster.services import up as start
    from cluster.settings import ServiceSettings
    from pipelines.home import home

    try:
        chosen = {name: value for name, value in options.items() if value is not None}
        settings = ServiceSettings(home=home(), **chosen)
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"]) from error
    running = start(settings, say)
    files = CredentialFiles(running.home)
    say(f"\nMLflow's page asks for user {MLFLOW_USER} and the password in {files.mlflow_password}")
    say(f"Ray's page asks for the token in {files.ray_token}")
    if running.metrics:
        say(f"Prometheus finds Ray's and the runs' metrics by {running.metrics_targets}")
    if running.tls:
        say(f"The certificates of S3 and MLflow are signed by {files.authority}, anew at every `agmm up`")
    say("`agmm` uses these services by itself. For boto3, mlflow and ray:\n")
    click.echo("\n".join(export_lines(running.home)))


@click.command()
def down() -> None:
    """Stop what `agmm up` started, jobs included."""
    from cluster.services import down as stop
    from pipelines.home import home

    stop(home(), say)


@click.command()
@click.option("--exports", is_flag=True, help='Only the lines to export: eval "$(agmm status --exports)".')
def status(exports: bool) -> None:
    """Ask each service whether it works. Exit code 1 if one does not."""
    from cluster.environment import export_lines
    from cluster.services import status as ask
    from pipelines.home import home

    if exports:
        click.echo("\n".join(export_lines(home())))
        return
    found = ask(home())
    table([service.model_dump() for service in found], "nothing is running: `agmm up` starts the services")
    if any(service.state != "running" for service in found):
        sys.exit(1)
