"""A model as a float graph of another format, and NeuroBench's metrics of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.export.agreement import Agreement
from agmm.packed.description import Input
from agmm.packed.files import whole
from agmm.packed.runtime import normalised
from pipelines.errors import UserError
from pipelines.export.about import about, packed
from pipelines.export.inputs import Inputs
from pipelines.progress import Say
from pipelines.registry import Model


def write_onnx(model: Model, out: Path, seen: Inputs, _: Say) -> dict[str, Any]:
    """The model as ONNX. Raises `Differs`, `Missing` for packages that are not installed, and OSError."""
    from agmm.export.onnx import write_onnx as write

    said = about(model)
    graph = write(model.network, said, out, _images(seen, said.input))
    return {"size_bytes": graph.size} | _distances(graph.agreement)


def write_nir(model: Model, out: Path, seen: Inputs, _: Say) -> dict[str, Any]:
    """The model as NIR, with a statement of what that does not hold. Raises as `write_onnx`."""
    from agmm.export.nir import write_nir as write

    said = about(model)
    file = write(model.network, said, out, _images(seen, said.input))
    return {"size_bytes": file.size} | _distances(file.agreement) | {"statement": list(file.statement)}


def write_metrics(model: Model, out: Path, seen: Inputs, _: Say) -> dict[str, Any]:
    """NeuroBench's metrics of the artifact, as JSON. Raises as `write_onnx`, and UserError for what has no metrics."""
    from agmm.export.neurobench import neurobench_metrics

    taken, images, labels = about(model).input, list[NDArray[np.float32]](), list[NDArray[np.int64]]()
    for batch, its_labels in seen.pairs:
        if its_labels is None:
            raise UserError(
                f"NeuroBench's metrics have an accuracy: name a built {model.card.data.dataset} with --data."
            )
        images.append(normalised(batch, taken))
        labels.append(its_labels)
    try:
        metrics = neurobench_metrics(model.network, packed(model), np.concatenate(images), np.concatenate(labels))
    except ValueError as error:
        raise UserError(f"Cannot measure {model.uri}: {error}") from error
    with whole(out) as partial:
        partial.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return metrics


def _images(seen: Inputs, taken: Input) -> NDArray[np.float32]:
    return np.concatenate([normalised(batch, taken) for batch in seen.batches])


def _distances(agreement: Agreement) -> dict[str, Any]:
    """How far the export is from the network in float64, and how far the network in float32 is from there."""
    return {"exported": asdict(agreement.exported), "float32": asdict(agreement.float32)}
