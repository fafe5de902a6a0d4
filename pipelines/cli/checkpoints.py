"""What is committed of runs, and whether it is whole."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.output import JSON, table
from pipelines.cli.services import use_services

if TYPE_CHECKING:
    from pipelines.checkpoints.inventory import Entry


@click.group()
def checkpoints() -> None:
    """Checkpoints of runs.

    URI is a run's address (a folder or s3://bucket/prefix), one checkpoint's, a folder of several runs, or a run's id.
    """


@checkpoints.command("list")
@click.argument("uri")
@JSON
def checkpoints_list(uri: str, as_json: bool) -> None:
    """Checkpoints at URI, the newest last: committed, unfinished, or of another format. No file is hashed."""
    use_services()
    from pipelines.checkpoints.inventory import entries

    rows = [entry.row() for entry in entries(uri)]
    if as_json:
        click.echo(json.dumps({"checkpoints": rows}))
    else:
        table([_shown(row) for row in rows], f"no checkpoint at {uri}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    cells = {key: "-" if value is None else value for key, value in row.items()}
    return {("MB" if key == "bytes" else key): _mb(row) if key == "bytes" else value for key, value in cells.items()}


def _mb(row: dict[str, Any]) -> str:
    return f"{row['bytes'] / 1e6:.3g}"


@checkpoints.command("verify")
@click.argument("uri")
@JSON
def checkpoints_verify(uri: str, as_json: bool) -> None:
    """Hash every file of the committed checkpoints at URI. Exit code 1 if one is damaged, 2 if there is none."""
    use_services()
    from pipelines.checkpoints.inventory import COMMITTED, DAMAGED, entries
    from pipelines.errors import UserError

    found = entries(uri)
    if not any(entry.state == COMMITTED for entry in found):
        others = ", ".join(f"{entry.name} ({entry.state})" for entry in found) or "nothing"
        raise UserError(f"There is no committed checkpoint to verify at {uri}. There is: {others}.")
    rows = _verified(found)
    if as_json:
        click.echo(json.dumps({"checkpoints": rows}))
    else:
        for row in rows:
            click.echo(f"{row['name']}: {'; '.join((row['state'], *row['problems']))}")
    if any(row["state"] == DAMAGED for row in rows):
        sys.exit(1)


def _verified(found: list[Entry]) -> list[dict[str, Any]]:
    from pipelines.checkpoints.inventory import COMMITTED, DAMAGED, WHOLE, problems
    from pipelines.progress import Progress

    rows = []
    with Progress(sum(entry.bytes for entry in found if entry.state == COMMITTED), "hashing", "B") as progress:
        for entry in found:
            row = entry.row() | {"problems": []}
            if entry.state == COMMITTED:
                row["problems"] = problems(entry, progress.advance)
                row["state"] = DAMAGED if row["problems"] else WHOLE
            rows.append(row)
    return rows
