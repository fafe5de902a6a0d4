"""Manifests as they are, to be looked at where they change: AGMM_GOLDEN=write writes them anew."""

import os
from pathlib import Path
from typing import get_args

import pytest

from cluster.manifests import renderers
from cluster.manifests.settings import ClusterSettings, Target
from tests.cluster.manifests.helpers import FULL, PLAIN

GOLDEN = Path(__file__).parent.parent / "golden"
SETTINGS = {"plain": PLAIN, "full": FULL, "cluster": FULL | {"kuberay": FULL["kuberay"] | {"kind": "cluster"}}}
CASES = [("plain", target) for target in get_args(Target)] + [("full", target) for target in get_args(Target)]


@pytest.mark.parametrize(("name", "target"), [*CASES, ("cluster", "kuberay")])
def test_a_manifest_is_as_it_was_looked_at(name, target):
    text = renderers.render(target, ClusterSettings.model_validate(SETTINGS[name]))
    path = GOLDEN / f"{name}.{target}.{'sh' if target == 'slurm' else 'yaml'}"
    if os.environ.get("AGMM_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"AGMM_GOLDEN=write writes {path.name} anew"


def test_the_same_settings_give_the_same_bytes():
    once, again = (ClusterSettings.model_validate(FULL) for _ in range(2))
    for target in get_args(Target):
        assert renderers.render(target, once) == renderers.render(target, again)
