"""The space of a search: from the recipe's `tune.space` to what a sampler draws from, and from what it drew to a run.

The draws are described in Optuna's distributions, for the random searcher too: one table for both, whole numbers stay
whole, and all values of a quantised interval are equally likely, its ends included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipelines.config import ModelConfig, RunConfig, TuneConfig, parse_config
from pipelines.config.search import Drawn, SpaceConfig
from pipelines.errors import UserError

Value = bool | int | float | str
Values = Mapping[str, Value]

KEYS: Mapping[str, str] = {
    "leak": "model.neuron.leak",
    "threshold": "model.neuron.threshold",
    "surrogate_width": "model.neuron.surrogate_width",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "time_steps": "model.time_steps",
    "method": "model.method",
    "gate_scope": "model.gate.scope",
}
_WHOLE = frozenset({"time_steps"})
_GATED = "agmm"
_FIXED = frozenset({"time_steps", "method", "gate_scope"})  # while a network trains: they change its parameters
_IGNORED_BY = {"if": frozenset({"leak"}), "relu": frozenset({"leak", "threshold", "surrogate_width"})}


def domains(space: SpaceConfig) -> dict[str, BaseDistribution]:
    """What each drawn field is drawn from, by its name. Raises UserError for a whole number's interval that is not."""
    return {name: _domain(name, drawn) for name, drawn in space.drawn.items()}


def applied(config: RunConfig, values: Values) -> RunConfig:
    """The run of a trial that drew `values`, without a `tune` section. Raises UserError where that is no valid run.

    Where the method has no gate, `model.gate` goes back to its default: a drawn scope and the recipe's own are moot.
    """
    tree = config.model_dump(mode="json") | {"tune": None}
    for name, value in values.items():
        *sections, leaf = KEYS[name].split(".")
        section: dict[str, Any] = tree
        for each in sections:
            section = section[each]
        section[leaf] = value
    if tree["model"]["method"] != _GATED:
        tree["model"]["gate"] = ModelConfig().gate.model_dump(mode="json")
    drawn = ", ".join(f"{name}={value}" for name, value in values.items())
    return parse_config(tree, origin=f"{config.name} with {drawn}")


def check_space(config: RunConfig) -> None:
    """Raise UserError, naming `tune.space.X`, where X may draw what is no valid run, or what makes no difference."""
    tune = config.tune or TuneConfig()
    space = tune.space
    domains(space)
    for name, drawn in space.drawn.items():
        if tune.scheduler == "pbt":
            _check_changeable(config, name)
        _check_neuron(config, name, drawn)
        _check_scope(config, name)
        runs = [(edge, list(_runs(config, space, name, edge))) for edge in drawn.edges]
        for (one, runs_of_one), (other, runs_of_other) in combinations(runs, 2):
            if runs_of_one == runs_of_other:
                raise UserError(
                    f"tune.space.{name} draws {one!r} and {other!r}, and both give the same run. Take one of them "
                    f"out, or leave tune.space.{name} out."
                )


def _domain(name: str, drawn: Drawn) -> BaseDistribution:
    if drawn.choice is not None:
        return CategoricalDistribution(drawn.choice)
    low, high = drawn.uniform or drawn.loguniform or (0, 1)
    log = drawn.loguniform is not None
    if name not in _WHOLE:
        return FloatDistribution(low, high, log=log, step=drawn.step)
    step = drawn.step or 1
    if not all(each == int(each) for each in (low, high, step)):
        raise UserError(f"tune.space.{name} draws whole numbers, and [{low}, {high}] or its step {step} is none.")
    return IntDistribution(int(low), int(high), log=log, step=int(step))


def _runs(config: RunConfig, space: SpaceConfig, name: str, edge: Value) -> Iterator[RunConfig]:
    """The runs in which `name` is drawn as `edge`, one for each method that may be drawn with it."""
    methods = space.method.edges if space.method and name != "method" else ()
    for others in [{"method": method} for method in methods] or [{}]:
        try:
            yield applied(config, {name: edge, **others})
        except UserError as error:
            raise UserError(f"tune.space.{name} may draw {edge!r}. {error}") from error


def _check_neuron(config: RunConfig, name: str, drawn: Drawn) -> None:
    kind = config.model.neuron.kind
    if name in _IGNORED_BY.get(kind, ()):
        raise UserError(
            f"tune.space.{name} makes no difference to neurons of model.neuron.kind={kind}. "
            f"Set tune.space.{name}=null, or another kind."
        )
    if kind == "plif" and name == "leak" and {0, 1} & set(drawn.edges):
        raise UserError(
            f"tune.space.leak draws {list(drawn.edges)}, and a learned leak (model.neuron.kind=plif) starts between 0 "
            "and 1, neither included. Write tune.space.leak={uniform: [0.05, 0.95]}."
        )


def _check_changeable(config: RunConfig, name: str) -> None:
    """Refuse what cannot change, or changes nothing, in a network that goes on from a checkpoint."""
    if name in _FIXED or (name == "leak" and config.model.neuron.kind == "plif"):
        learned = "" if name in _FIXED else ": with model.neuron.kind=plif it is learned"
        raise UserError(
            f"tune.space.{name} cannot change during a training{learned}, and tune.scheduler=pbt changes it. Set "
            f"tune.space.{name}=null, or another scheduler."
        )


def _check_scope(config: RunConfig, name: str) -> None:
    if name == "gate_scope" and config.model.gate.kind == "none":
        raise UserError("tune.space.gate_scope makes no difference with model.gate.kind=none. Leave it out.")
