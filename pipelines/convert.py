"""A trained network of rectified activations as a rate-coded spiking one: a model's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmm.conversion import calibrate, rate_coded
from pipelines.checkpoints.checkpoint import model_tensors
from pipelines.config import DataConfig, ModelConfig
from pipelines.data.manifest import ensure_verified
from pipelines.data.spread import spread
from pipelines.data.staging import data_folder
from pipelines.errors import ServiceError, UserError
from pipelines.network import normalise
from pipelines.progress import Say
from pipelines.registry import Model, ModelCard, load_model, write_model
from pipelines.version import code_version


def convert_model(
    uri: str,
    out: str,
    data_uri: str | None,
    tracking: str,
    say: Say,
    *,
    time_steps: int = 32,
    images: int = 1024,
    percentile: float = 99.9,
) -> dict[str, Any]:
    """Convert the model at `uri` into the folder `out`, calibrated on so many training images.

    Raises:
        UserError: for a model that cannot be converted, data that do not fit it, and a folder that is there.
        ServiceError: where the folder cannot be written, or a service does not answer.

    """
    if not 0 < percentile <= 100:
        raise UserError(f"--percentile must be above 0 and at most 100, got {percentile}.")
    folder = Path(out).expanduser().absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already. Choose another --out, or remove it.")
    model = load_model(uri, tracking)
    _refuse_what_has_no_rate(model)
    data = model.card.data
    source = data_folder(data_uri or data.uri, data.dataset, say)
    manifest = ensure_verified(source, expect_name=data.dataset, expect_classes=model.card.model.num_classes, say=say)
    if manifest.frames:
        raise UserError(
            f"{data.dataset} has event frames, and a rate is of one image at all steps. Convert for images."
        )
    levels = calibrate(model.network, _calibration_batches(source, data, images), percentile)
    if silent := [name for name, level in levels.items() if level == 0]:
        raise UserError(
            f"{len(silent)} of {len(levels)} layers, {silent[0]} first, are 0 up to their percentile {percentile}, and "
            "would never fire. Raise --percentile; at 100 a layer is silent only where the analogue is."
        )
    _write(folder, rate_coded(model_tensors(model.network), levels), _card(model.card, time_steps))
    found = {"level_min": min(levels.values()), "level_max": max(levels.values())}
    return {"model": str(folder), "time_steps": time_steps, "layers": len(levels), **found}


def _refuse_what_has_no_rate(model: Model) -> None:
    config: ModelConfig = model.card.model
    if config.neuron.kind != "relu":
        raise UserError(
            f"{model.uri} has {config.neuron.kind} neurons; only relu can be converted. "
            "Train with model.neuron.kind=relu and model.time_steps=1, as the recipe cifar10_resnet19_ann does."
        )
    bound = model.network.step_parameters()
    if bound:
        raise UserError(
            f"{model.uri} has {' and '.join(bound)}, which means nothing at another number of steps. "
            "Train with model.method=vanilla and model.norm=bn."
        )


def _calibration_batches(folder: Path, data: DataConfig, images: int) -> Iterator[Tensor]:
    """Normalised training images as evaluation would cut them."""
    for batch, _ in spread(folder, "train", data, images, "calibrate"):
        yield normalise(batch, data, torch.device("cpu"))


def _card(card: ModelCard, time_steps: int) -> ModelCard:
    """The analogue's card for its spiking twin; what was measured of the one is not true of the other."""
    neuron = card.model.neuron.model_copy(update={"kind": "rate_if"})
    model = card.model.model_copy(update={"neuron": neuron, "time_steps": time_steps})
    mine: dict[str, Any] = {"model": model, "metrics": {}, "config": {}, "note": "", "code_version": code_version()}
    return card.model_copy(update=mine)


def _write(folder: Path, tensors: dict[str, Tensor], card: ModelCard) -> None:
    """The whole folder or none of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            staging = Path(scratch) / "model"
            staging.mkdir()
            write_model(staging, tensors, card)
            staging.rename(folder)
    except OSError as error:
        raise ServiceError(f"Cannot write {folder}: {error}. Free some space or choose another --out.") from error
