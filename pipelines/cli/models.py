"""The model registry."""

from __future__ import annotations

import json

import click

from pipelines.cli.output import JSON, say, table
from pipelines.cli.services import use_services


@click.group()
def models() -> None:
    """The model registry."""


@models.command("list")
@JSON
def models_list(as_json: bool) -> None:
    """Registered versions, newest first."""
    use_services()
    from pipelines import registry
    from pipelines.tracking import runs as tracking

    uri = tracking.tracking_uri(None)
    with tracking.explained(uri):
        rows = registry.versions(tracking.connect(uri))
    if as_json:
        click.echo(json.dumps({"versions": rows}))
    else:
        table(rows, "no registered models yet: `agmm train` registers one")


@models.command("promote")
@click.argument("name")
@click.option("--to", "alias", default="champion", show_default=True, help="Alias to move.")
@click.option("--version", type=int, help="Version; default the newest.")
def models_promote(name: str, alias: str, version: int | None) -> None:
    """Point an alias of model NAME at a version, after loading and verifying it."""
    use_services()
    from pipelines import registry
    from pipelines.tracking import runs as tracking

    uri = tracking.tracking_uri(None)
    with tracking.explained(uri):
        click.echo(registry.promote(tracking.connect(uri), name, alias, version, say))
