"""A trained model as a file for elsewhere: first held against the model on real inputs, then put in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agmm.export.extras import Missing
from agmm.packed import artifact
from agmm.packed.pack import NotPackable
from agmm.packed.verify import Differs
from pipelines.errors import Refused, ServiceError, UserError
from pipelines.export.bits import write_packed, write_source
from pipelines.export.graphs import write_metrics, write_nir, write_onnx
from pipelines.export.inputs import Inputs, inputs_of
from pipelines.progress import Say
from pipelines.registry import Model, load_model

Kind = Literal["packed", "c", "onnx", "nir", "neurobench"]
SUFFIXES: dict[Kind, str] = {
    "packed": ".safetensors",
    "c": ".c",
    "onnx": ".onnx",
    "nir": ".nir",
    "neurobench": ".json",
}
# To compare on. The float graphs run in float64 and float32 too, and a NIR file up to ten times.
INPUTS: dict[Kind, int] = {"packed": 1000, "c": 1000, "onnx": 100, "nir": 16, "neurobench": 100}
_WRITERS: dict[Kind, Callable[[Model, Path, Inputs, Say], dict[str, Any]]] = {
    "packed": write_packed,
    "c": write_source,
    "onnx": write_onnx,
    "nir": write_nir,
    "neurobench": write_metrics,
}


def export_model(
    uri: str, kind: Kind, out: Path, data_uri: str | None, tracking: str, say: Say, *, inputs: int | None = None
) -> dict[str, Any]:
    """Export the model at `uri` to the file `out`, compared on so many inputs of its validation split.

    inputs: default by kind, `INPUTS`. Where the model's data set is not here and none is named, they are drawn, and the
    result says so.

    Raises:
        UserError: for a model that has no such form, data that are not its own, and a file that is there.
        Refused: where the export does not answer as the model; nothing is written.
        ServiceError: where the file cannot be written, or a service does not answer.

    """
    _check_out(out, kind)
    model = load_model(uri, tracking)
    seen = inputs_of(model, data_uri, inputs or INPUTS[kind], say)
    try:
        written = _WRITERS[kind](model, out, seen, say)
    except Differs as error:
        raise Refused(f"{uri} is not exported. {error}") from error
    except (NotPackable, Missing, artifact.Refused) as error:
        raise UserError(f"Cannot export {uri}: {error}") from error
    except OSError as error:
        raise ServiceError(
            f"Cannot export {uri} to {out}: {error}. Look at the disk: free some space or choose another --out."
        ) from error
    except MemoryError as error:
        raise ServiceError(f"Not enough memory to compare {uri}. Lower --inputs.") from error
    return {"file": str(out), "model": uri, "inputs": seen.origin} | written


def _check_out(out: Path, kind: Kind) -> None:
    """Before minutes of comparing: a file that cannot be written then is told of now."""
    suffix = SUFFIXES[kind]
    try:
        there = out.exists()
        with tempfile.NamedTemporaryFile(
            dir=_nearest_folder(out), suffix=f".{out.name}"
        ):  # longer than that of `whole`
            pass
    except OSError as error:
        raise ServiceError(f"Cannot write {out}: {error}. Choose another --out.") from error
    if out.suffix != suffix or there:
        what = "is there already" if there else f"does not end in {suffix}"
        raise UserError(f"--out {out} {what}. Give the path of a new {suffix} file.")


def _nearest_folder(out: Path) -> Path:
    """The folder that the file goes to, or that this will be made in."""
    return next(folder for folder in out.absolute().parents if folder.exists())
