"""A trained model as a file for elsewhere: first held against the model on real inputs, then put in place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agmm.export.agreement import Agreement
from agmm.export.extras import Missing
from agmm.packed import Runtime, artifact
from agmm.packed.artifact import Artifact
from agmm.packed.description import Input, Source
from agmm.packed.files import whole
from agmm.packed.pack import About, NotPackable, pack
from agmm.packed.runtime import normalised
from agmm.packed.verify import Differs, verify
from pipelines.data.manifest import MANIFEST, ensure_verified
from pipelines.data.spread import spread
from pipelines.data.staging import data_folder
from pipelines.errors import Refused, ServiceError, UserError
from pipelines.home import data_address
from pipelines.progress import Progress, Say
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
# Share of inputs that float32 may give another class than float64 does; see `agmm.packed.frozen`.
_MOST_OTHER_CLASSES = 0.01
_BATCH = 16


@dataclass(frozen=True)
class Inputs:
    """What a model is compared on: uint8 batches, channels last, their labels where they have any, and their origin."""

    origin: str
    pairs: Iterator[tuple[NDArray[np.uint8], NDArray[np.int64] | None]]

    @property
    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """Without the labels."""
        return (batch for batch, _ in self.pairs)


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
    seen = _inputs(model, data_uri, inputs or INPUTS[kind], say)
    try:
        written = (_as_bits if kind in ("packed", "c") else _as_graph)(model, kind, out, seen)
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


def about(model: Model) -> About:
    """What an artifact says of a model beside its network. Raises UserError for an input that no artifact has."""
    card = model.card
    frames = card.frames is not None
    if not frames and card.model.in_chans != len(card.data.mean):
        raise UserError(f"Cannot export {model.uri}: it takes images of {card.model.in_chans} channels, not RGB.")
    height, width = card.input_shape[-2:] if frames else card.input_shape[:2]
    taken = Input(
        channels=card.model.in_chans,
        height=height,
        width=width,
        frames=frames,
        crop_ratio=card.data.crop_ratio,
        mean=() if frames else card.data.mean,
        std=() if frames else card.data.std,
    )
    source = Source(
        model=model.uri, run_id=card.run_id, weights_sha256=card.weights_sha256, code_version=card.code_version
    )
    return About(card.name, card.model.arch, taken, tuple(card.classes), source)


def _check_out(out: Path, kind: Kind) -> None:
    """Before minutes of comparing: a file that cannot be written then is told of now."""
    suffix = SUFFIXES[kind]
    try:
        there = out.exists()
        with tempfile.TemporaryFile(dir=_nearest_folder(out)):
            pass
    except OSError as error:
        raise ServiceError(f"Cannot write {out}: {error}. Choose another --out.") from error
    if out.suffix != suffix or there:
        what = "is there already" if there else f"does not end in {suffix}"
        raise UserError(f"--out {out} {what}. Give the path of a new {suffix} file.")


def _nearest_folder(out: Path) -> Path:
    """The folder that the file goes to, or that this will be made in."""
    return next(folder for folder in out.absolute().parents if folder.exists())


def _inputs(model: Model, data_uri: str | None, count: int, say: Say) -> Inputs:
    data = model.card.data
    uri = data_uri or data.uri
    if data_uri is None and not (Path(data_address(uri, data.dataset)) / MANIFEST).is_file():
        say(f"{data.dataset} is not here: comparing on drawn inputs; --data names a built data set")
        return Inputs(f"{count} drawn", _drawn(about(model).input, model.card.model.time_steps, count))
    folder = data_folder(uri, data.dataset, say)
    ensure_verified(folder, expect_name=data.dataset, expect_classes=model.card.model.num_classes, say=say)
    batches = spread(folder, "val", data, count, "compare")
    return Inputs(f"validation of {folder}", ((_channels_last(images), labels.numpy()) for images, labels in batches))


def _channels_last(batch: torch.Tensor) -> NDArray[np.uint8]:
    return batch.movedim(-3, -1).numpy()


def _drawn(taken: Input, steps: int, count: int) -> Iterator[tuple[NDArray[np.uint8], None]]:
    """Noise of any brightness and contrast, or events that are rare."""
    generator = np.random.default_rng(0)
    shape = (*([steps] if taken.frames else []), taken.height, taken.width, taken.channels)
    with Progress(count, "compare", "input") as progress:
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            if taken.frames:
                yield generator.poisson(0.3, (size, *shape)).astype(np.uint8), None
            else:
                ends = generator.uniform(0, 256, (2, size, 1, 1, taken.channels))
                yield generator.uniform(ends.min(0), ends.max(0), (size, *shape)).astype(np.uint8), None
            progress.advance(size)


def _as_bits(model: Model, kind: Kind, out: Path, seen: Inputs) -> dict[str, Any]:
    packed = _packed(model)
    compared = _compare(model, packed, seen.batches)
    if kind == "c":
        from agmm.packed.c import write_c

        try:
            source = write_c(packed, out)
        except ValueError as error:
            raise UserError(f"Cannot export {model.uri}: {error}") from error
        written: dict[str, Any] = {"flash_bytes": source.flash_bytes, "ram_bytes": source.ram_bytes}
    else:
        artifact.write(packed, out)
        written = {"size_bytes": packed.size, "digest": packed.digest}
    return written | compared


def _packed(model: Model) -> Artifact:
    return artifact.from_bytes(artifact.to_bytes(pack(model.network, about(model))), model.uri)


def _compare(model: Model, packed: Artifact, batches: Iterator[NDArray[np.uint8]]) -> dict[str, Any]:
    """The artifact against the network in float64, where both must be the same; then what runs fast against that."""
    runtime, answers = _runtime(packed), list[NDArray[np.float32]]()
    agreement = verify(model.network, packed, _answered(runtime, batches, answers))
    logits_BK = np.concatenate(answers)
    others = int((logits_BK.argmax(1) != agreement.logits.argmax(1)).sum())
    if others > _MOST_OTHER_CLASSES * agreement.inputs:
        raise Differs(
            f"The {runtime.kernels} kernels give {others} of {agreement.inputs} inputs another class than the model. "
            "AGMM_KERNELS=portable chooses others; please report this."
        )
    return {
        "compared": agreement.inputs,
        "equal_integers": agreement.integers,
        "largest_difference": agreement.largest,
        "kernels": runtime.kernels,
        "other_classes_float32": others,
        "median_difference_float32": float(np.median(np.abs(logits_BK - agreement.logits).max(1))),
    }


def _runtime(packed: Artifact) -> Runtime:
    try:
        return Runtime(packed)
    except ValueError as error:
        raise UserError(str(error)) from error


def _answered(
    runtime: Runtime, batches: Iterator[NDArray[np.uint8]], answers: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """The batches as the network takes them; `answers` gets what the runtime says of each."""
    taken = runtime.description.input
    for batch in batches:
        answers.append(runtime(np.moveaxis(batch, -1, -3) if taken.frames else batch))
        yield normalised(batch, taken)


def _as_graph(model: Model, kind: Kind, out: Path, seen: Inputs) -> dict[str, Any]:
    said = about(model)
    pairs = [(normalised(batch, said.input), labels) for batch, labels in seen.pairs]
    images = np.concatenate([batch for batch, _ in pairs])
    if kind == "neurobench":
        return _neurobench(model, out, images, [labels for _, labels in pairs if labels is not None])
    if kind == "onnx":
        from agmm.export.onnx import write_onnx

        graph = write_onnx(model.network, said, out, images)
        return {"size_bytes": graph.size} | _distances(graph.agreement)
    from agmm.export.nir import write_nir

    file = write_nir(model.network, said, out, images)
    return {"size_bytes": file.size} | _distances(file.agreement) | {"statement": list(file.statement)}


def _neurobench(
    model: Model, out: Path, images: NDArray[np.float32], labels: list[NDArray[np.int64]]
) -> dict[str, Any]:
    from agmm.export.neurobench import neurobench_metrics

    if not labels:
        raise UserError(f"NeuroBench's metrics have an accuracy: name a built {model.card.data.dataset} with --data.")
    try:
        metrics = neurobench_metrics(model.network, _packed(model), images, np.concatenate(labels))
    except ValueError as error:
        raise UserError(f"Cannot measure {model.uri}: {error}") from error
    with whole(out) as partial:
        partial.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return metrics


def _distances(agreement: Agreement) -> dict[str, Any]:
    """How far the export is from the network in float64, and how far the network in float32 is from there."""
    return {"exported": asdict(agreement.exported), "float32": asdict(agreement.float32)}
