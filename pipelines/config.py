"""The one typed tree that describes a run, and how a recipe and `--set` become it.

A recipe is YAML over the defaults below; `--set a.b=c` is the last word. The tree is frozen, unknown keys are refused
with the known ones named, and the resolved tree travels with the run, its checkpoints and its registered model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import UserError

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Means = tuple[_Share, _Share, _Share]
_Deviations = tuple[_Positive, _Positive, _Positive]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class AugmentConfig(_Section):
    """What training does to an image; every draw is a function of (seed, epoch, sample id)."""

    crop: Literal["none", "pad", "random_resized"] = Field("none", description="how the training crop is drawn")
    padding: int = Field(4, ge=0, description="pixels of black border that `pad` crops from")
    scale: tuple[float, float] = Field((0.08, 1.0), description="share of the area that `random_resized` keeps")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratios that `random_resized` draws from")
    flip: bool = Field(True, description="mirror left and right with probability one half")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {list(self.ratio)}")
        return self


class DataConfig(_Section):
    """Which images, at which size, in which batches."""

    dataset: str = Field(description="name that the data's manifest must carry")
    uri: str | None = Field(None, description="folder made by `agmm data build`; default <home>/data/<dataset>")
    resolution: int = Field(224, ge=1, description="pixels a side that the network sees")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="share of the short side that evaluation keeps")
    batch_size: int = Field(128, ge=1, description="images in a global batch, whatever the number of workers")
    loader: Literal["auto", "ffcv", "torch"] = Field("auto", description="auto: FFCV where it is installed")
    threads: int = Field(1, ge=1, description="loader threads (FFCV) or processes (torch) of each worker")
    mean: _Means = Field((0.485, 0.456, 0.406), description="channel means, of 0..1")
    std: _Deviations = Field((0.229, 0.224, 0.225), description="channel deviations, of 0..1")
    augment: AugmentConfig = AugmentConfig()


class NeuronConfig(_Section):
    """Leaky integrate-and-fire, Eq. 1-4 and 7."""

    leak: float = Field(0.5, ge=0, le=1, description="share of the membrane kept from step to step (tau)")
    threshold: float = Field(1.0, gt=0, description="membrane value that fires (V_th)")
    surrogate_width: float = Field(1.0, gt=0, description="half width of the triangular surrogate (gamma)")
    detach_reset: bool = Field(False, description="stop the gradient through the reset")


class GateConfig(_Section):
    """The AGMM gate, Eq. 11-16, and the controls that tell what it does."""

    kind: Literal["agmm", "constant", "forward_only", "backward_only", "none"] = Field(
        "agmm", description="the method's gate, or a control that tells what the gate does"
    )
    scope: Literal["sample", "channel"] = Field("sample", description="what one gate value covers")


class ModelConfig(_Section):
    """The network."""

    arch: str = Field("agmm_resnet18", description="name in timm's registry")
    num_classes: int = Field(1000, ge=2, description="must be what the data has")
    width: int | None = Field(
        None, ge=1, le=4096, description="channels of the first stage; default the published network's"
    )
    stem: Literal["imagenet", "cifar"] | None = Field(None, description="7x7/2 and max-pool, or 3x3/1")
    time_steps: int = Field(4, ge=1, le=1024, description="T")
    method: Literal["agmm", "vanilla", "full_precision"] = Field(
        "agmm", description="binary with the gate, binary without, or full-precision weights"
    )
    neuron: NeuronConfig = NeuronConfig()
    gate: GateConfig = GateConfig()


class OptimConfig(_Section):
    """Stochastic gradient descent on the latent weights."""

    lr: float = Field(0.1, gt=0, description="at the peak")
    momentum: float = Field(0.9, ge=0, lt=1, description="of stochastic gradient descent")
    weight_decay: float = Field(1e-4, ge=0, description="of convolution and linear weights only")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine: to 0 at the end")
    warmup: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")
    epochs: int = Field(300, ge=1, description="passes over the training images")
    max_steps: int | None = Field(None, ge=1, description="end after so many steps, the schedule included")


class ExecutionConfig(_Section):
    """Where and how the run executes."""

    workers: int = Field(1, ge=1, description="processes, one device each")
    cpus_per_worker: int = Field(1, ge=1, description="cores that a worker computes with")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where Ray has any")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of convolutions; state and weights stay fp32")
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(False, description="refuse operations that are not reproducible")
    max_failures: int = Field(3, ge=0, description="times a run restarts after losing a worker")
    measure: Literal["none", "epoch", "step"] = Field(
        "step",
        description="epoch: firing, latent weights, gradients of its last step; step: also flips from step to step; "
        "none: only the epoch's flips. A compiled network has no firing and no gradients",
    )
    log_every: int = Field(20, ge=1, description="steps between progress lines and training metrics")


class CheckpointConfig(_Section):
    """When a checkpoint is committed, and where."""

    uri: str | None = Field(None, description="folder or s3://bucket/prefix; default <store>/checkpoints")
    every: int | None = Field(None, ge=1, description="steps; besides the end of each epoch")
    keep: int = Field(2, ge=1, description="committed checkpoints kept of a run")


class TrackingConfig(_Section):
    """MLflow."""

    uri: str | None = Field(None, description="default MLFLOW_TRACKING_URI, else SQLite in <home>")
    experiment: str = Field("agmm", min_length=1, description="name in MLflow")
    register_as: str | None = Field(
        None, pattern=_NAME, description="registered model's name; none: the model is only logged"
    )


class RunConfig(_Section):
    """A whole run."""

    name: str = Field(pattern=_NAME, description="letters, digits, dots, dashes, underscores; names the run")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    run: ExecutionConfig = ExecutionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _every_worker_has_an_image(self) -> RunConfig:
        if self.data.batch_size < self.run.workers:
            raise ValueError(
                f"data.batch_size is the global batch and must be at least run.workers: "
                f"{self.data.batch_size} images for {self.run.workers} workers. Raise one or lower the other."
            )
        return self

    def total_steps(self, train_images: int) -> int:
        """Optimiser steps of the whole run, on so many training images."""
        steps = self.optim.epochs * (train_images // self.data.batch_size)
        return min(steps, self.optim.max_steps or steps)


_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # a date that is none, and a thousand brackets

# Fields that say where a run executes, not what it computes: a resume may change them.
FREE_ON_RESUME = frozenset({"run", "checkpoint", "tracking", "data.uri", "data.loader", "data.threads"})
# ... but these parts of `run` change the numbers.
FIXED_IN_RUN = frozenset({"run.precision", "run.deterministic"})


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipelines") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> str:
    """The YAML of a recipe, by name or by path. Raises UserError when there is none."""
    is_path = name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path
    if not is_path and name_or_path not in recipe_names():
        raise UserError(
            f"Unknown recipe {name_or_path!r}. Known: {', '.join(recipe_names())}. Or give the path of a .yaml file."
        )
    source = Path(name_or_path) if is_path else resources.files("pipelines") / "recipes" / f"{name_or_path}.yaml"
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read recipe {name_or_path}: {error}. Give a recipe's name or a .yaml path.") from error


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Recipe plus `a.b=c` overrides as a checked tree. Raises UserError for whatever is wrong with either."""
    try:
        tree = yaml.safe_load(recipe_text(name_or_path))
    except _YAML_ERRORS as error:
        raise UserError(f"Recipe {name_or_path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"Recipe {name_or_path} must be a mapping of {', '.join(RunConfig.model_fields)}.")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, origin=name_or_path)


def parse_config(tree: Mapping[str, Any], *, origin: str) -> RunConfig:
    """A plain mapping as a checked tree; `origin` names it in errors. Raises UserError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise UserError(f"{origin} is not a valid run:\n{lines}") from error


def config_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Fields that differ and that a resume may not change, as `key: old -> new` lines."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in before | after if before.get(key) != after.get(key) and not _is_free(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _is_free(key: str) -> bool:
    return key not in FIXED_IN_RUN and (key in FREE_ON_RESUME or key.split(".")[0] in FREE_ON_RESUME)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form a.b=value, for example --set model.neuron.leak=0.25.")
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {key}: {section!r} is a value, not a section.")
    try:
        tree[leaf] = yaml.safe_load(text)
    except _YAML_ERRORS as error:
        raise UserError(f"--set {key}: {text!r} is not a YAML value: {error}") from error


def _explain(item: Mapping[str, Any]) -> str:
    """One pydantic error as: where, what is wrong, what came, what is allowed."""
    where = ".".join(str(part) for part in item["loc"]) or "the tree"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key. Known here: {', '.join(_section_of(item['loc']).model_fields)}."
    if item["type"] == "missing":
        return f"{where}: required, and missing."
    came = "" if isinstance(item["input"], Mapping | BaseModel) else f" Got {item['input']!r}."
    return f"{where}: {item['msg'].removeprefix('Value error, ').rstrip('.')}.{came}"


def _section_of(location: tuple[Any, ...]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return section
