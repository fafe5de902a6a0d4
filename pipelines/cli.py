"""The command line, and the composition root: the one place that knows both `pipelines` and `cluster`.

Every command imports its work when it is called, so that `agmm --help` answers at once. Results go to stdout, all else
to stderr. Exit code 0; 2 for a user's mistake; 1 for a failure; 130 for Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
_SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a field of the recipe.")
_DATA = click.option("--data", "data_uri", metavar="URI", help="Built data set; default the model's own.")


def say(line: str) -> None:
    """Tell the person at the terminal."""
    click.echo(line, err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        code = agmm.main(args=arguments, prog_name="agmm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        code = 130
    except Exception as error:  # noqa: BLE001, the last resort: what was not foreseen is raised again
        code = _expected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _expected(error: Exception) -> int:
    """Print the text of an error that was foreseen and give its exit code; anything else is a bug and stays loud."""
    from cluster import errors as cluster_errors
    from pipelines import errors

    if isinstance(
        error, (errors.UserError, errors.ServiceError, cluster_errors.UserError, cluster_errors.ServiceError)
    ):
        say(f"Error: {error}")
        return error.exit_code
    raise error


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(len(key) for key in result)
    for key, value in result.items():
        click.echo(f"{key:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _table(rows: list[dict[str, Any]], empty: str) -> None:
    if not rows:
        click.echo(empty)
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _use_services() -> None:
    """Point boto3, MLflow and Ray at the services of `agmm up`, unless the user has chosen others."""
    if "AGMM_STORE" in os.environ or "MLFLOW_TRACKING_URI" in os.environ:
        return
    from cluster.environment import activate
    from pipelines.home import home

    activate(home())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="agmm")
def agmm() -> None:
    """Train, track and ship binary spiking neural networks: 1-bit weights, 0/1 spikes."""


@agmm.command()
@click.argument("recipe")
@_SET
@click.option("--resume", is_flag=True, help="Go on with the newest unfinished run of this recipe.")
@_JSON
def train(recipe: str, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    """Train RECIPE, a name or the path of a YAML file: Ray Train, FFCV, MLflow, checkpoints."""
    from pipelines.config import load_recipe

    config = load_recipe(recipe, overrides)
    _use_services()
    from pipelines.train import train as train_run

    _show(train_run(config, resume=resume, say=say), as_json)


@agmm.command()
@click.argument("model")
@_DATA
@_JSON
def evaluate(model: str, data_uri: str | None, as_json: bool) -> None:
    """Exact validation of MODEL: models:/name@alias, runs:/id/model, a checkpoint's address or a model's folder."""
    _use_services()
    from pipelines.evaluate import evaluate_model
    from pipelines.home import default_tracking_uri

    _show(evaluate_model(model, data_uri, default_tracking_uri(), say), as_json)


@agmm.group()
def recipes() -> None:
    """The recipes that come with the package."""


@recipes.command("list")
def recipes_list() -> None:
    """Names and first lines."""
    from pipelines.config import recipe_names, recipe_text

    _table([{"name": name, "what": recipe_text(name).splitlines()[0].lstrip("# ")} for name in recipe_names()], "none")


@recipes.command("show")
@click.argument("recipe")
@_SET
def recipes_show(recipe: str, overrides: tuple[str, ...]) -> None:
    """RECIPE as a run would use it, every default filled in."""
    import yaml

    from pipelines.config import load_recipe

    click.echo(yaml.safe_dump(load_recipe(recipe, overrides).model_dump(mode="json"), sort_keys=False), nl=False)


@recipes.command("schema")
def recipes_schema() -> None:
    """The JSON schema of a recipe, for editors."""
    from pipelines.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@agmm.group()
def data() -> None:
    """Fetch, build and verify data sets."""


@data.command("list")
def data_list() -> None:
    """Data sets that `agmm data fetch` knows."""
    from pipelines.data.fetch import KNOWN

    _table([{"name": name, "MB": known.megabytes, "what": known.title} for name, known in KNOWN.items()], "none")


@data.command("fetch")
@click.argument("name")
def data_fetch(name: str) -> None:
    """Get the original files of data set NAME onto this machine."""
    from pipelines.data.fetch import fetch
    from pipelines.data.sources import source_home
    from pipelines.home import home

    click.echo(fetch(name, source_home(home()), say))


@data.command("build")
@click.argument("source")
@click.option("--out", metavar="FOLDER", help="Where to; default <home>/data/<name>.")
@click.option("--name", help="Name in the manifest; default the source's.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there, once the new one is whole.")
@_JSON
def data_build(source: str, out: str | None, name: str | None, on_error: Any, overwrite: bool, as_json: bool) -> None:
    """Build SOURCE into train.beton, val.beton and a manifest.

    SOURCE is an ImageFolder (train/ and val/ or test/), CIFAR in the binary version, MNIST-like idx files, or the name
    of a fetched data set.
    """
    from pipelines.data.build import build
    from pipelines.data.sources import open_source
    from pipelines.home import data_folder, home

    opened = open_source(source, home(), name=name)
    folder = out or str(data_folder(None, opened.name))
    manifest = build(opened, folder, on_error=on_error, overwrite=overwrite, say=say)
    counts = {split: info.count for split, info in manifest.splits.items()}
    _show({"data": folder, "name": manifest.name, "classes": len(manifest.classes), **counts}, as_json)


@data.command("verify")
@click.argument("uri")
def data_verify(uri: str) -> None:
    """Check every hash and count of the built data set at URI."""
    from pipelines.data.manifest import verify

    manifest = verify(uri, say)
    click.echo(f"{manifest.name}: whole")


@agmm.group()
def models() -> None:
    """The model registry."""


@models.command("list")
@_JSON
def models_list(as_json: bool) -> None:
    """Registered versions, newest first."""
    _use_services()
    from pipelines import registry, tracking

    uri = tracking.tracking_uri(None)
    with tracking.explained(uri):
        rows = registry.versions(tracking.connect(uri))
    if as_json:
        click.echo(json.dumps({"versions": rows}))
    else:
        _table(rows, "no registered models yet: `agmm train` registers one")


@models.command("promote")
@click.argument("name")
@click.option("--to", "alias", default="champion", show_default=True, help="Alias to move.")
@click.option("--version", type=int, help="Version; default the newest.")
def models_promote(name: str, alias: str, version: int | None) -> None:
    """Point an alias of model NAME at a version, after loading and verifying it."""
    _use_services()
    from pipelines import registry, tracking

    uri = tracking.tracking_uri(None)
    with tracking.explained(uri):
        click.echo(registry.promote(tracking.connect(uri), name, alias, version, say))


@agmm.command()
@click.option("--s3-port", type=int, default=8333, show_default=True)
@click.option("--mlflow-port", type=int, default=5000, show_default=True)
@click.option("--dashboard-port", type=int, default=8265, show_default=True)
@click.option("--ray-port", type=int, default=6379, show_default=True)
def up(**ports: Any) -> None:
    """Start an S3 server, MLflow and a Ray head with its dashboard, on loopback. Port 0 takes any free one."""
    from pydantic import ValidationError

    from cluster.credentials import MLFLOW_USER, CredentialFiles
    from cluster.environment import export_lines
    from cluster.services import up as start
    from cluster.settings import ServiceSettings
    from pipelines.home import home

    try:
        settings = ServiceSettings(home=home(), **ports)
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"]) from error
    running = start(settings, say)
    files = CredentialFiles(running.home)
    say(f"\nMLflow's page asks for user {MLFLOW_USER} and the password in {files.mlflow_password}")
    say(f"Ray's page asks for the token in {files.ray_token}")
    say("`agmm` uses these services by itself. For boto3, mlflow and ray:\n")
    click.echo("\n".join(export_lines(running.home)))


@agmm.command()
def down() -> None:
    """Stop what `agmm up` started, jobs included."""
    from cluster.services import down as stop
    from pipelines.home import home

    stop(home(), say)


@agmm.command()
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
    _table([service.model_dump() for service in found], "nothing is running: `agmm up` starts the services")
    if any(service.state != "running" for service in found):
        sys.exit(1)


@agmm.command(context_settings={"ignore_unknown_options": True})
@click.option("--address", metavar="URL", help="Job server; default RAY_API_SERVER_ADDRESS or that of `agmm up`.")
@click.option("--detach", is_flag=True, help="Do not wait for the job.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str | None, detach: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND as a Ray job and follow its log: agmm submit -- agmm train RECIPE. The exit code is the job's."""
    _use_services()
    from cluster.job import submit as submit_job

    return submit_job(command, address=address, follow=not detach, say=say)


@agmm.group()
def jobs() -> None:
    """The jobs of the Ray head."""


@jobs.command("list")
def jobs_list() -> None:
    """All jobs, newest first."""
    _use_services()
    from cluster.job import jobs_list as ask

    _table([job._asdict() for job in ask()], "no jobs")


@jobs.command("logs")
@click.argument("job")
def jobs_logs(job: str) -> None:
    """The whole log of JOB, so far."""
    _use_services()
    from cluster.job import job_logs

    click.echo(job_logs(job), nl=False)


@jobs.command("stop")
@click.argument("job")
def jobs_stop(job: str) -> None:
    """Ask JOB to end."""
    _use_services()
    from cluster.job import job_stop

    click.echo("stopping" if job_stop(job) else "it had ended already")


if __name__ == "__main__":
    main()
