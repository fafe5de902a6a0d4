"""A configuration as a recipe that a person reads and `agmm train` takes: only what differs from the defaults."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import RunConfig
from pipelines.errors import ServiceError, UserError
from pipelines.recipe import load_recipe

_SUFFIXES = (".yaml", ".yml")


def write_recipe(path: str | Path, config: RunConfig, head: Sequence[str], *, overwrite: bool = False) -> None:
    """Write a recipe that loads as `config` does, but for its `tune` section, which is left out.

    head: lines of the comment on top, the lab record, without their `# `. Give the configuration as a recipe has it:
    the driver's resolved one holds addresses of this machine. The file is there whole or not at all.

    Raises:
        UserError: where the path has no suffix of a recipe, or is taken and `overwrite` was not asked for.
        ServiceError: where the file cannot be written.

    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise UserError(f"A recipe's path ends with {' or '.join(_SUFFIXES)}. Got {path}.")
    _check_free(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            scratch = Path(folder) / path.name
            scratch.write_text(recipe_of(config, head), encoding="utf-8")
            assert load_recipe(str(scratch)) == config.model_copy(update={"tune": None}), (
                "a recipe loads as what it is of"
            )
            _check_free(path, overwrite)
            scratch.replace(path)
    except OSError as error:
        raise ServiceError(f"Cannot write {path}: {error}. Free some space or choose another path.") from error


def recipe_of(config: RunConfig, head: Sequence[str]) -> str:
    """The text of the recipe: comment, then YAML in the order of the configuration's sections."""
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"tune"})
    comment = "".join(f"# {line}".rstrip() + "\n" for lines in head for line in lines.splitlines() or [""])
    return comment + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """YAML as recipes have it: sections in blocks, lists on a line, no anchors, and no text that reads as a number."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write a value in full, however often it comes."""
        return True

    def _list(self, values: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)

    def _text(self, value: str) -> yaml.Node:
        # what is text to YAML 1.1, as 1e-05 without a dot, is a number to YAML 1.2 and to people; line breaks such as
        # U+0085 come back as they are where they are escaped
        style = "'" if _reads_as_number(value) else None if value.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(list, _Dumper._list)
_Dumper.add_representer(str, _Dumper._text)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.startswith(("0o", "0x"))
    return True


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists. Move it away, choose another path, or say that it may be overwritten.")
