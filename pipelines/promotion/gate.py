"""The gate file: YAML of `pipelines.config.gate`, over its defaults."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipelines.config.gate import GateConfig
from pipelines.config.section import parse_section
from pipelines.errors import UserError
from pipelines.recipe import YAML_ERRORS, StrictLoader


def load_gate(path: str | None) -> GateConfig:
    """The rules of a gate file; without one, the defaults. Raises UserError for whatever is wrong with it."""
    if path is None:
        return GateConfig()
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506, a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the gate file {path}: {error}. Give the path of a YAML file.") from error
    except YAML_ERRORS as error:
        raise UserError(f"The gate file {path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(
            f"The gate file {path} must be a mapping of {', '.join(GateConfig.model_fields)}, "
            "as in `top1: {worse_by: 0.002, at_least: 0.85}`."
        )
    return parse_section(GateConfig, tree, origin=path, what="gate")
