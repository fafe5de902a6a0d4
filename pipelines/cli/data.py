"""Fetch, build, verify, upload and stage data sets."""

from __future__ import annotations

from typing import Any

import click

from pipelines.cli.output import JSON, say, show, table

_QUALITY = 90


@click.group()
def data() -> None:
    """Fetch, build, verify, upload and stage data sets."""


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
@click.option(
    "--short-side",
    type=click.IntRange(1, 65535),
    help="Resize images whose short side is longer to this, and store them as JPEG: fewer bytes to decode in training.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), help="Of the JPEG files that --short-side makes.  [default: 90]"
)
@click.option("--out", metavar="URI", help="Where to, a folder or s3://bucket/prefix; default <home>/data/<name>.")
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
    short_side: int | None,
    quality: int | None,
    out: str | None,
    name: str | None,
    on_error: Any,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build SOURCE into train.beton, val.beton and a manifest.

    SOURCE is an ImageFolder (train/ and val/ or test/), CIFAR in the binary version, MNIST-like idx files, DVS-Gesture,
    CIFAR10-DVS, or the name of a fetched data set. Recordings of events are stored as frames. RGB JPEG files are stored
    byte for byte, unless --short-side says otherwise.
    """
    from pipelines.data.publish import build_to
    from pipelines.data.saccade import simulated
    from pipelines.data.samples import Reencoding
    from pipelines.data.smaller import smaller
    from pipelines.data.sources import choose_frames, open_source
    from pipelines.home import data_address, home

    if (source is None) == (events_from is None):
        raise click.UsageError("give SOURCE, or --events-from IMAGES in its place")
    if quality is not None and short_side is None:
        raise click.UsageError("--quality is of what --short-side re-encodes: give both")
    opened = open_source(str(source or events_from), home(), name=name)
    if events_from is not None:
        opened = simulated(opened, name)
    opened = choose_frames(opened, frames, frame_size, frame_by)
    if short_side is not None:
        opened = smaller(opened, Reencoding(short_side, quality or _QUALITY))
    address = out or data_address(None, opened.name)
    _use_services(address)
    manifest = build_to(opened, address, on_error=on_error, overwrite=overwrite, say=say)
    counts = {split: info.count for split, info in manifest.splits.items()}
    show({"data": address, "name": manifest.name, "classes": len(manifest.classes), **counts}, as_json)


@data.command("verify")
@click.argument("uri")
def data_verify(uri: str) -> None:
    """Check every hash and count of the built data set at URI, a folder or s3://bucket/prefix."""
    from pipelines.data.manifest import verify
    from pipelines.data.publish import verify_origin

    _use_services(uri)
    manifest = verify_origin(uri, say) if "://" in uri else verify(uri, say)
    click.echo(f"{manifest.name}: whole")


@data.command("push")
@click.argument("folder")
@click.argument("uri")
@click.option("--overwrite", is_flag=True, help="Replace a data set that is there.")
def data_push(folder: str, uri: str, overwrite: bool) -> None:
    """Upload the built data set in FOLDER to URI, s3://bucket/prefix, from where runs stage it."""
    from pipelines.data.publish import push

    _use_services(uri)
    click.echo(push(folder, uri, overwrite=overwrite, say=say))


@data.command("stage")
@click.argument("uri")
def data_stage(uri: str) -> None:
    """Copy the data set at URI into this machine's cache, as a run would, and print the folder."""
    from pipelines.data.manifest import load_manifest
    from pipelines.data.staging import stage

    _use_services(uri)
    folder = stage(uri, say=say)
    load_manifest(folder)
    click.echo(folder)


@data.command("cache")
@click.option("--clear", is_flag=True, help="Remove the data sets that no process uses.")
def data_cache(clear: bool) -> None:
    """What is staged on this machine, the least recently used first."""
    from datetime import datetime

    from pipelines.data import cache

    place = cache.cache_dir()
    if clear:
        click.echo(f"{cache.clear(place, say)} removed from {place}")
        return
    rows = [
        {"folder": entry.folder, "size": cache.size(entry.bytes), "used": f"{datetime.fromtimestamp(entry.used):%F %R}"}
        for entry in cache.entries(place)
    ]
    table(rows, f"nothing is staged in {place}")


def _use_services(uri: str) -> None:
    """Point boto3 at the S3 server of `agmm up` for an address that needs one."""
    from pipelines.cli.services import use_services

    if uri.startswith("s3://"):
        use_services()
