"""Libraries that only an export needs, imported when it runs."""

from importlib import import_module
from types import ModuleType
from typing import Any

# PyPI's neurobench asks for audio libraries and data sets that its metrics do not use.
_NEUROBENCH = "pip install --no-deps neurobench snntorch"
_INSTALL = {"neurobench": _NEUROBENCH, "snntorch": _NEUROBENCH}


class Missing(ValueError):
    """A library is not installed; the text has the command that installs it."""


def need(name: str) -> Any:
    """The module `name`. Raises Missing, which names the command, where its library is not installed."""
    try:
        module: ModuleType = import_module(name)
    except ModuleNotFoundError as error:
        absent = (error.name or name).partition(".")[0]
        command = _INSTALL.get(absent, "in a checkout, pip install '.[export]'")
        raise Missing(f"This export needs the Python package {absent}, which is not installed: {command}") from error
    return module
