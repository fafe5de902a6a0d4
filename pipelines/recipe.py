"""From a recipe and `--set` to a configuration.

A recipe is YAML over the defaults of `pipelines.config`. `extends: NAME` puts it over another recipe instead, so that a
variant says only what it changes. `--set a.b=c` is the last word.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import RunConfig, parse_config
from pipelines.errors import UserError
from pipelines.names import refuse_unseen

_EXTENDS, _MERGE = "extends", "tag:yaml.org,2002:merge"
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # a date that is none, and a thousand brackets


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipelines") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> str:
    """The YAML of a recipe, by name or by path. Raises UserError when there is none."""
    refuse_unseen([name_or_path], "A recipe")
    is_path = _is_path(name_or_path)
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
    tree = _tree(name_or_path, ())
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree, origin=name_or_path)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe."""
    schema = RunConfig.model_json_schema()
    extends = {"type": "string", "description": "recipe, by name or path, that this one is put over"}
    return schema | {"properties": {_EXTENDS: extends} | schema["properties"], "required": []}


def _is_path(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def _tree(name_or_path: str, below: tuple[str, ...]) -> dict[str, Any]:
    """A recipe over the one that it extends; `below` are those that extend this one."""
    place = str(Path(name_or_path).resolve()) if _is_path(name_or_path) else name_or_path
    if place in below:
        raise UserError(f"Recipes extend each other in a circle: {' -> '.join([*below, place])}.")
    tree = _parse(name_or_path)
    base = tree.pop(_EXTENDS, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"Recipe {name_or_path}: extends must be a recipe's name or path. Got {base!r}.")
    refuse_unseen([base], f"Recipe {name_or_path}: extends")
    # a path is read from where the recipe lies that names it
    base = str(Path(name_or_path).parent / base) if _is_path(base) else base
    return _merged(_tree(base, (*below, place)), tree)


def _parse(name_or_path: str) -> dict[str, Any]:
    tree = parse_yaml(recipe_text(name_or_path), f"Recipe {name_or_path}")
    if not isinstance(tree, dict):
        raise UserError(f"Recipe {name_or_path} must be a mapping of {', '.join(RunConfig.model_fields)}.")
    return tree


def parse_yaml(text: str, what: str) -> Any:
    """Plain values of YAML in which no key is twice; errors call it `what`. Raises UserError."""
    try:
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506, a SafeLoader
    except YAML_ERRORS as error:
        raise UserError(f"{what} is not YAML: {error}") from error


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which lets the last of two equal keys win in silence; this one refuses the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, as yaml has it; raises ConstructorError for a key that is there twice."""
        # what `<<` merges in may be named again
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in base.keys() & over.keys() if _are_sections(base, over, key)}
    return base | over | both


def _are_sections(base: dict[str, Any], over: dict[str, Any], key: str) -> bool:
    return isinstance(base[key], dict) and isinstance(over[key], dict)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set what `a.b=value` says in a tree, the value being YAML. Raises UserError."""
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
    except YAML_ERRORS as error:
        raise UserError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
