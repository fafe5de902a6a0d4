"""From settings to a manifest's text, by what will read it."""

from __future__ import annotations

from collections.abc import Callable

from cluster.manifests import kuberay, rayup, slurm
from cluster.manifests.settings import ClusterSettings

_RENDERERS: dict[str, Callable[[ClusterSettings], str]] = {
    "kuberay": kuberay.render,
    "rayup": rayup.render,
    "slurm": slurm.render,
}


def render(target: str, settings: ClusterSettings) -> str:
    """The manifest that `target` reads, ending in a newline. Raises UserError for what it cannot be."""
    return _RENDERERS[target](settings)
