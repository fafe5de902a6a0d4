"""Clusters of machines: the manifests that make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pipelines.cli.output import say

if TYPE_CHECKING:
    from cluster.manifests.settings import ClusterSettings

_SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a setting.")


@click.group()
def cluster() -> None:
    """Clusters of machines: KubeRay, ray up, Slurm."""


@cluster.command()
@click.option("--to", "target", required=True, metavar="kuberay|rayup|slurm", help="What will read it.")
@click.option("--settings", "path", metavar="FILE.yaml", help="Settings over the defaults; see `agmm cluster schema`.")
@_SET
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to; default stdout.")
def render(target: str, path: str | None, overrides: tuple[str, ...], out: Path | None) -> None:
    """Write a cluster's manifest from typed settings. It names secrets, and holds none."""
    from cluster.manifests import renderers
    from cluster.manifests.settings import Target

    if target not in get_args(Target):
        raise click.BadParameter(f"{target!r} is not one of {', '.join(get_args(Target))}.", param_hint="--to")
    settings = _settings(path, overrides)
    _check_recipe(settings)
    _give(out, renderers.render(target, settings))


@cluster.command()
def schema() -> None:
    """The JSON schema of the settings, for editors."""
    from cluster.manifests.settings import ClusterSettings

    click.echo(json.dumps(ClusterSettings.model_json_schema(), indent=2))


@cluster.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to; default stdout.")
def dashboard(out: Path | None) -> None:
    """Write the Grafana dashboard of training runs: import it, and choose the Prometheus that scrapes Ray."""
    from cluster.dashboard import dashboard as read

    _give(out, read())


@cluster.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def secrets(folder: Path) -> None:
    """Generate the secrets of docker/compose.yaml in FOLDER, files of mode 0600. What is there stays as it is."""
    from cluster.stack import write_secrets

    files = write_secrets(folder.absolute())
    say(f"{len(files)} files in {folder}: for your eyes only, and for the containers' user, who must own them.")
    say(
        f"MLflow's page asks for what {folder / 'mlflow-credentials'} says, Ray's for what {folder / 'ray-token'} does."
    )


def _settings(path: str | None, overrides: tuple[str, ...]) -> ClusterSettings:
    from cluster.manifests.settings import ClusterSettings
    from pipelines.config.section import parse_section
    from pipelines.recipe import apply_override

    tree = _read(path) if path else {}
    for override in overrides:
        apply_override(tree, override)
    return parse_section(ClusterSettings, tree, origin=path or "--set", what="cluster")


def _read(path: str) -> dict[str, Any]:
    from pipelines.errors import UserError
    from pipelines.recipe import parse_yaml

    try:
        tree = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read settings {path}: {error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"Settings {path} must be a mapping; `agmm cluster schema` says of what.")
    return tree


def _check_recipe(settings: ClusterSettings) -> None:
    """Refuse a recipe that cannot be trained so before it waits in a queue. One that is a file is the nodes' own."""
    from cluster.manifests.training import overrides
    from pipelines.recipe import load_recipe

    if "/" not in settings.job.recipe and not settings.job.recipe.endswith((".yaml", ".yml")):
        load_recipe(settings.job.recipe, overrides(settings))


def _give(out: Path | None, text: str) -> None:
    """Write it where it was asked for, by default to stdout."""
    from pipelines.errors import UserError

    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error
    say(f"wrote {out}")
