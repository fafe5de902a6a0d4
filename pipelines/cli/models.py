"""The model registry: look at it, move its aliases."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import models_text
from pipelines.cli.output import JSON, say
from pipelines.cli.services import use_services

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATA = click.option("--data", "data_uri", metavar="URI", help="Built data set; default the model's own.")
_DRY = click.option("--dry-run", is_flag=True, help="Do all but move the alias and write.")


@contextmanager
def _registry() -> Iterator[MlflowClient]:
    use_services()
    from pipelines.tracking import runs as tracking

    uri = tracking.tracking_uri(None)
    with tracking.explained(uri):
        yield tracking.connect(uri)


@click.group()
def models() -> None:
    """The model registry: MLflow's, with records that promotion checks."""


@models.command("list")
@JSON
def models_list(as_json: bool) -> None:
    """Registered versions, newest first; times are UTC."""
    with _registry() as client:
        from pipelines.promotion.views import listing

        rows = listing(client)
    if as_json:
        click.echo(json.dumps({"versions": rows}))
    else:
        models_text.versions_table(rows)


@models.command("promote")
@click.argument("name")
@click.option("--to", "alias", default="champion", show_default=True, help="Alias to move.")
@click.option("--version", "number", type=int, help="Version; default the newest.")
@click.option("--gate", "gate_file", metavar="FILE", help="YAML of rules; default top1: {worse_by: 0.002}.")
@_DATA
@_DRY
@click.option(
    "--replace-damaged",
    is_flag=True,
    help="Where the current version is damaged or cannot be measured, let the absolute rules decide alone.",
)
@JSON
def models_promote(name: str, gate_file: str | None, as_json: bool, **asked: Any) -> None:
    """Point an alias of model NAME at a version that passes the gate, and write down why.

    The version's files must have the SHA-256 they were registered with, the data set must be its own, and both it and
    the version that the alias has now are measured on every validation image.

    \b
    The gate file has bounds by metric:
      top1: {worse_by: 0.002, at_least: 0.85}      worse_by: than the current one
      size_mb: {at_most: 5, ratio: 1.0}            ratio: times the current one's
      energy_mj: {convention: horowitz_45nm, ratio: 1.1}
      firing: {at_least: 0.01}                     also top5 loss sops macs flips
      same_data: true                              both were trained with the same validation images

    Exit code 0: promoted, or there already. 1: refused, or a service failed. 2: no such model, version or data set, or
    the gate file is wrong. The alias moves with 0 only.
    """
    with _registry() as client:
        from pipelines.promotion.gate import load_gate
        from pipelines.promotion.promote import Asked, promote

        decision = promote(client, Asked(name=name, gate=load_gate(gate_file), **asked), say)
    if as_json:
        click.echo(json.dumps(asdict(decision) | {"model": f"models:/{name}@{decision.alias}"}))
    else:
        models_text.decision(decision)
    if decision.refused:
        sys.exit(1)


@models.command("rollback")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="Alias to move back.")
@click.option("--why", default="", metavar="TEXT", help="For the record.")
@_DRY
@JSON
def models_rollback(name: str, alias: str, why: str, dry_run: bool, as_json: bool) -> None:
    """Point an alias of model NAME at the version that it had before, once that is seen to be whole.

    No gate: it passed one. Again, and it goes one further back. Exit code 1: that version is damaged, or a service
    failed; 2: there is nothing to go back to.
    """
    with _registry() as client:
        from pipelines.promotion.rollback import rollback

        back = rollback(client, name, alias, why=why, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(back)))
        return
    for number in back.deleted:
        say(f"version {number} has been deleted, and is passed over")
    was = "not set" if back.before is None else f"version {back.before}"
    click.echo(f"{name}@{alias} {'would be' if dry_run else 'is'} version {back.version} again, was {was}")


@models.command("show")
@click.argument("model", metavar="NAME[@ALIAS|/VERSION]")
@JSON
def models_show(model: str, as_json: bool) -> None:
    """All that is known of a version: figures, hashes, data, what was decided about it, its card."""
    with _registry() as client:
        from pipelines.promotion.views import described

        found = described(client, model)
    if as_json:
        click.echo(json.dumps(found))
    else:
        models_text.version(found)


@models.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--evaluate", is_flag=True, help="Measure both now, instead of what training recorded.")
@click.option("--data", "data_uri", metavar="URI", help="Data set to measure on; default A's own. Implies --evaluate.")
@JSON
def models_compare(first: str, second: str, evaluate: bool, data_uri: str | None, as_json: bool) -> None:
    """Two versions side by side; each is NAME, NAME@alias or NAME/version."""
    with _registry() as client:
        from pipelines.promotion import views

        measure = evaluate or data_uri is not None
        found = (
            views.compared_now(client, first, second, data_uri, say)
            if measure
            else views.compared(client, first, second)
        )
    if as_json:
        click.echo(json.dumps(found))
    else:
        models_text.comparison(found)
