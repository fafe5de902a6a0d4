"""Exact validation of a model on a built data set: every image counted once, operations and spikes with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from agmm.loop import evaluate, means
from agmm.metrics.cost import count_parameters
from agmm.metrics.energy import energy_mj
from agmm.metrics.firing import FiringMeter, firing_rates, total_firing_rate
from agmm.metrics.operations import OperationMeter, totals
from pipelines.data.frames_loader import check_kind
from pipelines.data.loaders import BatchLoader, open_loader
from pipelines.data.manifest import ensure_verified
from pipelines.data.staging import data_folder
from pipelines.errors import UserError
from pipelines.network import normalise
from pipelines.progress import Progress
from pipelines.registry import Model, load_model


def evaluate_model(
    uri: str,
    data_uri: str | None,
    tracking: str,
    say: Callable[[str], None],
    time_steps: Sequence[int] = (),
) -> dict[str, Any]:
    """Load a model, verify its data, and measure on every image of its validation split.

    `time_steps` asks for other T than the model's own.

    Returns:
        `time_steps`; `top1` and `top5` (0 to 1), `loss`, `count`; `sops`, `macs` and, by convention, `energy_mj` of one
        image, and by layer as `layers`; where neurons fire, the `firing` rate, and by layer `firing_by_step`. Of
        several T all this comes as `rows`, one for each. Besides, `size_mb`, and where all of it came from.

    Raises:
        UserError: where the model or the data are not what they should be, or the model cannot run over such a T.
        ServiceError: where a service does not answer.

    """
    model = load_model(uri, tracking)
    chosen = list(time_steps) or [model.card.model.time_steps]
    for steps in chosen:
        _set_time_steps(model, steps)
    data = model.card.data
    folder = data_folder(data_uri or data.uri, data.dataset, say)
    manifest = ensure_verified(folder, expect_name=data.dataset, expect_classes=model.card.model.num_classes, say=say)
    frames = manifest.frames.shape if manifest.frames else None
    for steps in chosen:
        check_kind(frames, data, model.card.model.model_copy(update={"time_steps": steps}))
    loader = open_loader(folder, "val", data=data, seed=0, say=say)
    try:
        rows = [_measure(model, loader, steps) for steps in chosen]
    finally:
        loader.close()
    size = count_parameters(model.network).megabytes
    about = {"model": uri, "run_id": model.card.run_id, "checkpoint": model.checkpoint, "size_mb": size}
    return about | {"data": str(folder)} | (rows[0] if len(rows) == 1 else {"rows": rows})


def _set_time_steps(model: Model, steps: int) -> None:
    try:
        model.network.set_num_steps(steps)
    except ValueError as error:
        raise UserError(f"Cannot evaluate {model.uri} with --time-steps {steps}: {error}") from error


def _measure(model: Model, loader: BatchLoader, steps: int) -> dict[str, Any]:
    """What the model does over `steps` time steps on every image of the loader."""
    _set_time_steps(model, steps)
    clock: list[tuple[float, int]] = []
    network = model.network.to("cuda" if torch.cuda.is_available() else "cpu")
    firing, operations = FiringMeter(network, steps), OperationMeter(network)
    with firing.measuring(), operations.measuring():
        result = means(evaluate(network, _batches(model, loader, clock)))
    measured = {"time_steps": steps} | result | {"images_per_second": _speed(clock)}
    return measured | _costs(operations, result["count"]) | _firing(firing)


def _costs(operations: OperationMeter, images: float) -> dict[str, Any]:
    layers = operations.per_image(images)
    sums = totals(layers)
    return sums | {"energy_mj": energy_mj(**sums), "layers": [asdict(layer) for layer in layers]}


def _firing(meter: FiringMeter) -> dict[str, Any]:
    if not meter.names:  # a network without spikes
        return {}
    by_step = firing_rates(meter.names, meter.counts_LT2)
    return {"firing": total_firing_rate(meter.counts_LT2), "firing_by_step": by_step}


def _speed(clock: list[tuple[float, int]]) -> float | None:
    """Images a second after the first batch, which waits for the loader to be compiled; None for a single batch."""
    (started, _), (ended, _) = clock[0], clock[-1]
    return sum(images for _, images in clock[1:]) / (ended - started) if len(clock) > 1 else None


def _batches(model: Model, loader: BatchLoader, clock: list[tuple[float, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches; `clock` gets the time at which each was done, and its images."""
    device = next(model.network.parameters()).device
    with Progress(loader.samples, "evaluate", "image") as progress:
        for images, labels in loader.epoch(0):
            yield normalise(images, model.card.data, device), labels.to(device)
            progress.advance(len(labels))
            clock.append((time.perf_counter(), len(labels)))
