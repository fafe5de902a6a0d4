"""What commands share: where their words go, and the options that many have."""

from __future__ import annotations

import json
from typing import Any

import click

from pipelines import logs

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a field of the recipe.")


def say(line: str) -> None:
    """Tell the person at the terminal, if there is one who can be told: what is said is never worth the work."""
    logs.line(line)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout: aligned lines, or one JSON object."""
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(len(key) for key in result)
    for key, value in result.items():
        click.echo(f"{key:<{width}}  {_figure(value) if isinstance(value, float) else value}")


def _figure(value: float) -> str:
    """Four digits, whatever the size; a count as it is."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(rows: list[dict[str, Any]], empty: str) -> None:
    """Print rows of equal keys in columns, or the line `empty`."""
    if not rows:
        click.echo(empty)
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
