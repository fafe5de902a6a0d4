"""What operators of a cluster get: the dashboard of its runs."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.cli.output import say


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to; default stdout.")
def dashboard(out: Path | None) -> None:
    """Write the Grafana dashboard of training runs: import it, and choose the Prometheus that scrapes Ray."""
    from cluster.dashboard import dashboard as read
    from pipelines.errors import UserError

    if out is None:
        click.echo(read(), nl=False)
        return
    try:
        out.write_text(read(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error
    say(f"wrote {out}")
