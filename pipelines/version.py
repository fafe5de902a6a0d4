"""Which code this is."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def code_version() -> str:
    """The package's version and, in a checkout, its commit: `0.1.0+g1a2b3c4`, `-dirty` with uncommitted changes."""
    folder = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    if not (folder / ".git").exists():
        return version("agmm")
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version("agmm")
    return f"{version('agmm')}+g{commit}"
