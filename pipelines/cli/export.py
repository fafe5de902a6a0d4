"""Models as files for elsewhere, and predictions from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipelines.cli.output import JSON, say, show, table
from pipelines.cli.services import use_services

if TYPE_CHECKING:
    from pipelines.export import Kind


@click.command()
@click.argument("model")
@click.option(
    "--to", "kind", type=click.Choice(["packed", "c", "onnx", "nir", "neurobench"]), default="packed", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--data", "data_uri", metavar="URI", help="Built data set to compare on; default the model's own.")
@click.option(
    "--inputs",
    type=click.IntRange(1, 1_000_000),
    help="How many to compare on; default 1000, of onnx and neurobench 100, of nir 16.",
)
@JSON
def export(model: str, kind: str, out: Path, data_uri: str | None, inputs: int | None, as_json: bool) -> None:
    """Write MODEL as a 1-bit artifact, C source, ONNX or NIR, once that has answered as MODEL does.

    Or NeuroBench's metrics of it, as JSON. MODEL is models:/name@alias, runs:/id/model, a checkpoint's address or a
    model's folder.
    """
    use_services()
    from pipelines.export import export_model
    from pipelines.home import default_tracking_uri

    show(export_model(model, cast("Kind", kind), out, data_uri, default_tracking_uri(), say, inputs=inputs), as_json)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Classes to name, best first.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--kernels", help="avx512, avx2, portable or reference; default AGMM_KERNELS, or the fastest here.")
@JSON
def predict(
    artifact: Path, images: tuple[Path, ...], top: int, threads: int, kernels: str | None, as_json: bool
) -> None:
    """Classify IMAGES with ARTIFACT, a file of `agmm export --to packed`: no Ray, no MLflow, no GPU.

    An image file is cut and resized as in evaluation; for event frames give .npy files, uint8 [T, 2, H, W].
    """
    from pipelines.predict import predict_files

    rows = predict_files(artifact, images, say, top=top, threads=threads, kernels=kernels)
    if as_json:
        click.echo(json.dumps({"predictions": rows}))
    else:
        table([_line(row) for row in rows], "nothing to predict")


def _line(row: dict[str, Any]) -> dict[str, str]:
    from agmm.packed.files import shown

    named = ", ".join(f"{shown(its['name'], 60)} {its['probability']:.1%}" for its in row["classes"])
    return {
        "file": row["file"],
        "class": named,
        "ms": f"{row['milliseconds']:.3g}",
        "spikes": f"{row['spikes']:,} ({row['firing']:.1%})",
        "SOPs": f"{row['sops']:.3g}",
        "MACs": f"{row['macs']:.3g}",
    } | {f"mJ {name}": f"{energy:.3g}" for name, energy in row["energy_mj"].items()}
