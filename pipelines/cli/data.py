"""Fetch, build and verify data sets."""

from __future__ import annotations

from typing import Any

import click

from pipelines.cli.output import JSON, say, show, table


@click.group()
def data() -> None:
    """Fetch, build and verify data sets."""


@data.command("list")
def data_list() -> None:
    """Data sets that `agmm data fetch` knows."""
    from pipelines.data.fetch import KNOWN

    table([{"name": name, "MB": known.megabytes, "what": known.title} for name, known in KNOWN.items()], "none")


@data.command("fetch")
@click.argument("name")
def data_fetch(name: str) -> None:
    """Get the original files of data set NAME onto this machine."""
    from pipelines.data.fetch import fetch
    from pipelines.data.sources import source_home
    from pipelines.home import home

    click.echo(fetch(name, source_home(home()), say))


@data.command("build")
@click.argument("source", required=False)
@click.option("--events-from", metavar="IMAGES", help="In place of SOURCE: images, before a simulated event camera.")
@click.option(
    "--frames", type=click.IntRange(1, 1024), help="Frames of a recording, T; default 16 for DVS-Gesture, else 10."
)
@click.option("--frame-size", type=click.IntRange(1, 128), help="Pixels a side of a frame; default 48.")
@click.option("--frame-by", type=click.Choice(["count", "time"]), help="Frames of equal event count (default) or time.")
@click.option("--out", metavar="FOLDER", help="Where to; default <home>/data/<name>.")
@click.option("--name", help="Name in the manifest; default the source's.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there, once the new one is whole.")
@JSON
def data_build(
    source: str | None,
    events_from: str | None,
    frames: int | None,
    frame_size: int | None,
    frame_by: Any,
    out: str | None,
    name: str | None,
    on_error: Any,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build SOURCE into train.beton, val.beton and a manifest.

    SOURCE is an ImageFolder (train/ and val/ or test/), CIFAR in the binary version, MNIST-like idx files, DVS-Gesture,
    CIFAR10-DVS, or the name of a fetched data set. Recordings of events are stored as frames.
    """
    from pipelines.data.build import build
    from pipelines.data.saccade import simulated
    from pipelines.data.sources import choose_frames, open_source
    from pipelines.home import data_folder, home

    if (source is None) == (events_from is None):
        raise click.UsageError("give SOURCE, or --events-from IMAGES in its place")
    opened = open_source(str(source or events_from), home(), name=name)
    if events_from is not None:
        opened = simulated(opened, name)
    opened = choose_frames(opened, frames, frame_size, frame_by)
    folder = out or str(data_folder(None, opened.name))
    manifest = build(opened, folder, on_error=on_error, overwrite=overwrite, say=say)
    counts = {split: info.count for split, info in manifest.splits.items()}
    show({"data": folder, "name": manifest.name, "classes": len(manifest.classes), **counts}, as_json)


@data.command("verify")
@click.argument("uri")
def data_verify(uri: str) -> None:
    """Check every hash and count of the built data set at URI."""
    from pipelines.data.manifest import verify

    manifest = verify(uri, say)
    click.echo(f"{manifest.name}: whole")
