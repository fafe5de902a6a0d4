"""The model's card for people, in markdown: what it is, how good, what it costs, how to use it, and its limits."""

from __future__ import annotations

import textwrap

import torch

from agmm.metrics.cost import count_parameters
from agmm.metrics.energy import CONVENTIONS
from pipelines.config import RunConfig
from pipelines.network import build_network, timm_arguments
from pipelines.registry.card import RECIPE, WEIGHTS, ModelCard

_LONGEST_DESCRIPTION = 5000  # characters that the column of MLflow's databases takes
_REST = f"The whole card is `README.md` among the model's files, beside `{WEIGHTS}`.\n"
_MOST_CLASSES = 20  # that are named

_LIMITS = """## Limits
- Made for inputs like those of its data set, at this resolution; it has not been tested on any other.
- Logits are not calibrated probabilities. There is no class for "none of these".
- Energy is computed from counted operations by the named convention, and was not measured on hardware. Neuron updates,
  pooling and residual additions are not in it, nor, but for the conventions named after a memory, is any memory access.
- Sizes are computed. `model.safetensors` holds all weights in float32, as training goes on from them."""

_ORIGIN = """## Licence and citation
The code is under Apache-2.0. The weights carry the terms of the data set that they were trained on. The method:
Liang et al., "Towards Accurate Binary Spiking Neural Networks: Learning with Adaptive Gradient Modulation Mechanism",
AAAI 2025, arXiv:2502.14344."""


def markdown(card: ModelCard) -> str:
    """The whole card."""
    return "\n\n".join(_sections(card)) + "\n"


def description(card: ModelCard) -> str:
    """The card as far as the registry takes it: whole sections, at most 5000 characters."""
    text, kept = markdown(card), _sections(card)
    while len(text) > _LONGEST_DESCRIPTION and kept:
        kept = kept[:-1]
        text = "\n\n".join([*kept, _REST])
    return text


def _sections(card: ModelCard) -> list[str]:
    config = card.run_config
    parts = [_head(card), _accuracy(card, config), _costs(card), _data(card), _training(card, config), _use(card)]
    return [part for part in [*parts, _LIMITS, _ORIGIN] if part]


def _head(card: ModelCard) -> str:
    model = card.model
    weights = "float32" if model.method == "full_precision" else "1-bit"
    neurons = "rectified activations" if model.neuron.kind == "relu" else f"{model.neuron.kind} neurons, 0/1 spikes"
    about = [
        f"# Model card for {card.registered_as or card.name}",
        f"An image classifier: `{model.arch}`, method `{model.method}` ({weights} weights, {neurons}), "
        f"T = {model.time_steps}, {model.num_classes} classes of {card.data.dataset}, inputs of "
        f"{' x '.join(map(str, card.input_shape))}.",
        f"Run `{card.run_id or 'unknown'}`, code `{card.code_version or 'unknown'}`.",
    ]
    return "\n\n".join(about)


def _accuracy(card: ModelCard, config: RunConfig | None) -> str:
    metrics = card.metrics
    if "top1" not in metrics:
        return "## Accuracy\nNot measured: `agmm evaluate` measures it."
    rows = {
        "top-1, last epoch: these weights": _percent(metrics.get("top1")),
        "top-5, last epoch": _percent(metrics.get("top5")),
        "top-1, best epoch on these images: weights not in this model": _percent(metrics.get("best_top1")),
        "weight signs flipped in the last epoch": _percent(metrics.get("flips")),
        "firing: spikes per neuron and time step": _number(metrics.get("firing")),
    }
    seed = f", seed {config.seed}" if config else ""
    return (
        f"## Accuracy\nOn all {_count(card, 'val')} validation images, each counted once. n = 1: one run{seed}, so "
        f"that nothing is said about the spread over seeds.\n\n{_table(rows)}"
    )


def _costs(card: ModelCard) -> str:
    with torch.device("meta"):  # counts need no weights
        size = count_parameters(build_network(card.model))
    rows = {
        "parameters": f"{size.total:,}, of which {size.binary:,} are 1-bit",
        "size at 1 bit a binary weight": f"{size.megabytes:.3f} MB",
        "size in float32": f"{size.full_precision_megabytes:.3f} MB",
    }
    if "sops" not in card.metrics:
        return f"## Costs of an inference\nOperations were not counted: `agmm evaluate` does.\n\n{_table(rows)}"
    rows |= {"SOPs": f"{card.metrics['sops']:,.0f}", "MACs": f"{card.metrics['macs']:,.0f}"}
    rows |= {
        f"energy by `{name}` ({cost.mac:g} pJ a MAC, {cost.sop:g} a SOP"
        + (f", {cost.weight_byte:g} a byte of weights)" if cost.weight_byte else ")"): f"{energy:.4g} mJ"
        for name, cost in CONVENTIONS.items()
        if (energy := card.metrics.get(f"energy_mj/{name}")) is not None
    }
    return f"## Costs of an inference\nCounted on every validation image; the mean of one image.\n\n{_table(rows)}"


def _data(card: ModelCard) -> str:
    rows = {
        f"{split}: {_count(card, split)} {'recordings' if card.frames else 'images'}": f"`{digest}`"
        for split, digest in card.data_digests.items()
    }
    if not rows:
        return ""
    names = ", ".join(card.classes[:_MOST_CLASSES]) + (", ..." if len(card.classes) > _MOST_CLASSES else "")
    return f"## Data\n{card.data.dataset}. Classes: {names}.\n\n{_table(rows, ('split', 'content digest'))}"


def _training(card: ModelCard, config: RunConfig | None) -> str:
    if config is None:
        return f"## Training\n{card.note}" if card.note else ""
    optim, augment = config.optim, config.data.augment
    rows = {
        "length": f"{optim.epochs} epochs" + (f", at most {optim.max_steps} steps" if optim.max_steps else ""),
        "global batch": f"{config.data.batch_size}, seed {config.seed}, {config.run.precision}",
        "optimiser": f"{optim.optimizer}, lr {optim.lr:g} ({optim.schedule}, {optim.warmup:g} epochs of warm-up), "
        f"momentum {optim.momentum:g}, weight decay {optim.weight_decay:g}, label smoothing {optim.label_smoothing:g}",
        "augmentation": f"crop {augment.crop}, flip {augment.flip}, policy {augment.policy}, cutout {augment.cutout}, "
        f"mixup {augment.mix.mixup:g}, cutmix {augment.mix.cutmix:g}",
        "loss": f"TET {config.loss.tet:g}, teacher {config.loss.distill.teacher or 'none'}",
    }
    parts = [
        f"## Training\n`agmm train {RECIPE}` trains another; that file has every setting.",
        _table(rows),
        card.note,
    ]
    return "\n\n".join(part for part in parts if part)


def _use(card: ModelCard) -> str:
    uri = f"models:/{card.registered_as}@champion" if card.registered_as else f"runs:/{card.run_id}/model"
    mlflow = f"""import mlflow, numpy as np  # with MLFLOW_TRACKING_URI set

model = mlflow.pyfunc.load_model("{uri}")  # @champion once promoted; a version as /1
logits = model.predict(np.zeros({(1, *card.input_shape)}, dtype=np.uint8))"""
    blocks = [mlflow, _timm(card)] if card.run_id else [_timm(card)]
    return "## Use\nWhere this package is installed:\n\n" + "\n\n".join(f"```python\n{block}\n```" for block in blocks)


def _timm(card: ModelCard) -> str:
    words = {key: value for key, value in timm_arguments(card.model).items() if value is not None}
    call = ", ".join([repr(card.model.arch), *(f"{key}={value!r}" for key, value in words.items())])
    if card.frames:
        shape, what = str((card.frames[0], 1, *card.frames[1:])), "counts of events"
    else:
        shape = str((1, 3, card.data.resolution, card.data.resolution))
        what = f"(pixels / 255 - {card.data.mean}) / {card.data.std}"
    return f"""import agmm.models, timm, torch  # agmm first: it registers the networks
from safetensors.torch import load_file

network = timm.create_model(
{textwrap.indent(textwrap.fill(call, 100, break_long_words=False), "    ")}
)
network.load_state_dict(load_file("{WEIGHTS}"))
images = torch.zeros{shape}  # {what}
with torch.inference_mode():
    logits = network.eval()(images).mean(0)"""


def _table(rows: dict[str, str], head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])


def _count(card: ModelCard, split: str) -> str:
    count = dict(card.images).get(split)  # type: ignore[call-overload]
    return f"{count:,}" if count else "the"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
