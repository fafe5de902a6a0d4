"""A driver without workers, for tests that end it: opens a run, logs until it is ended, prints the run's id first."""

import signal
import sys
import time

import click
import yaml

from pipelines import cli
from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.tracking import runs as tracking
from pipelines.tracking.lifecycle import tracked


@cli.agmm.command()
@click.argument("path", type=click.File())
@click.option("--resume", is_flag=True)
def drive(path, resume):
    config = parse_config(yaml.safe_load(path), origin="test")
    client = tracking.connect(config.tracking.uri)
    manifest = load_manifest(config.data.uri)
    with tracked(client, config, manifest, resume=resume, say=lambda line: click.echo(line, err=True)) as run:
        run.journal.log({"train/loss": 0.5}, 1)
        click.echo(run.id)
        sys.stdout.flush()
        time.sleep(120)


if __name__ == "__main__":
    # a shell ignores them for what it starts in the background, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    cli.main(["drive", *sys.argv[1:]])
