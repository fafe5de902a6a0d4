"""`agmm cluster secrets`: what docker/compose.yaml reads."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.cli.output import say


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def secrets(folder: Path) -> None:
    """Generate the secrets of docker/compose.yaml in FOLDER, files of mode 0600. What is there stays as it is."""
    from cluster.stack import write_secrets

    files = write_secrets(folder.absolute())
    say(f"{len(files)} files in {folder}: for your eyes only, and for the containers' user of the same number.")
    say(
        f"MLflow's page asks for what {folder / 'mlflow-credentials'} says, Ray's for what {folder / 'ray-token'} does."
    )
