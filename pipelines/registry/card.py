"""What a model is, beside its weights, and the recipe that trains another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config import DataConfig, ModelConfig, RunConfig
from pipelines.errors import UserError

WEIGHTS, CARD, README, RECIPE = "model.safetensors", "model.json", "README.md", "recipe.yaml"
FORMAT = 2
_FIRST = 1  # without configuration, README and recipe; only the training split's digest


class ModelCard(BaseModel):
    """What a model is, beside its weights.

    Metrics are those of the validation of these weights (see `pipelines.loop.epoch_end`); none are of a model that was
    not trained as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: int = FORMAT
    name: str
    model: ModelConfig
    data: DataConfig
    frames: tuple[int, int, int, int] | None = None  # (T, 2, H, W) that it takes; none: RGB images
    classes: list[str] = []
    data_digests: dict[Literal["train", "val"], str] = {}  # content digests of the data set's manifest
    images: dict[Literal["train", "val"], int] = {}  # or recordings, in each split
    run_id: str = ""
    registered_as: str = ""
    code_version: str = ""
    metrics: dict[str, float] = {}
    config: dict[str, Any] = {}  # the resolved tree of the training, with the addresses it had
    note: str = ""  # a paragraph of markdown, as how a search found it
    weights_sha256: str = ""
    files_sha256: dict[Literal["README.md", "recipe.yaml"], str] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Axes of one input as `predict` takes it: (H, W, 3) of an image, (T, 2, H, W) of frames."""
        return self.frames or (self.data.resolution, self.data.resolution, 3)

    @property
    def run_config(self) -> RunConfig | None:
        """The tree that the model was trained with; none where the card has none."""
        return RunConfig.model_validate(self.config) if self.config else None


def parse_card(content: bytes, uri: str) -> ModelCard:
    """The card in a file's content. Raises UserError, which names `uri`, for another file or a newer format."""
    try:
        tree = json.loads(content)
        came = tree["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{uri} is not a model of this program: {CARD} has no format.") from error
    if came not in (_FIRST, FORMAT):
        raise UserError(
            f"{uri} has format {came}; this version reads {_FIRST} and {FORMAT}. Use the version that wrote it."
        )
    try:
        return ModelCard.model_validate(_from_first(tree) if came == _FIRST else tree)
    except ValidationError as error:
        raise UserError(f"{uri} is not a model of this program: {error}") from error


def recipe_yaml(card: ModelCard) -> str:
    """A recipe that trains the model again, every default filled in and no address of this machine in it."""
    config = card.run_config
    assert config is not None, "the card has no configuration"
    tree = config.model_dump(mode="json")
    for section in ("data", "checkpoint", "tracking"):
        tree[section]["uri"] = None
    teacher = tree["loss"]["distill"]
    lines = [_title(card), "Run:      agmm train recipe.yaml", f"Measured: {_measured(card, config)}"]
    if teacher["weights"]:
        teacher["weights"] = Path(teacher["weights"]).name
        lines.append(f"Needs:    the teacher's weights, {teacher['weights']}, in the folder that it is run from")
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(tree, sort_keys=False)


def _title(card: ModelCard) -> str:
    model, dataset = card.model, " ".join(card.data.dataset.split())
    return f"{model.arch}, {model.method}, T = {model.time_steps}, {dataset}: as run {card.run_id or '?'} trained it."


def _measured(card: ModelCard, config: RunConfig) -> str:
    if "top1" not in card.metrics:
        return "not yet run."
    accuracy = f"{card.metrics['top1']:.2%} top-1 (1 seed: {config.seed})"
    return f"{accuracy}, after {config.optim.epochs} epochs, code {card.code_version or 'unknown'}."


def _from_first(tree: dict[str, Any]) -> dict[str, Any]:
    digest = tree.pop("data_digest", "")
    return tree | {"format": FORMAT, "data_digests": {"train": digest} if digest else {}}
