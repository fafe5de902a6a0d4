"""The card for people: what it says is so, what is not known it says, and its code runs."""

import re

import pytest

from agmm.metrics.cost import count_parameters
from pipelines import registry
from pipelines.registry.readme import description, markdown
from pipelines.tracking import runs as tracking


@pytest.fixture
def whole(published):
    return registry.load_model(published.uri, published.config.tracking.uri).card


def test_it_says_what_was_measured_and_of_how_many_seeds(whole, published):
    text, size = markdown(whole), count_parameters(published.network)
    for words in (
        "# Model card for tiny",
        "`agmm_resnet18`",
        "all 21 validation images",
        "n = 1: one run, seed 0",
        "33.33%",  # last epoch
        "50.00%",  # best epoch
        "1,234,567",
        "`paper_table2` (1.69 pJ a MAC, 0.38 a SOP)",
        f"{size.megabytes:.3f} MB",
        f"{size.full_precision_megabytes:.3f} MB",
        published.manifest.splits["val"].content_digest,
        "Found by *hand*.",
        "Apache-2.0",
        "## Limits",
    ):
        assert words in text, words


def test_the_registry_shows_it_within_what_its_database_takes(whole, published):
    shown = published.client.get_model_version("tiny", "1").description
    assert shown == description(whole)
    assert shown.startswith("# Model card for tiny")
    assert len(shown) <= 5000
    long = description(whole.model_copy(update={"classes": ["a long name" * 20] * 100, "note": "found " * 300}))
    assert len(long) <= 5000
    assert long.endswith("beside `model.safetensors`.\n")


def test_what_was_not_measured_is_not_claimed(card):
    text = markdown(card)
    assert "Not measured: `agmm evaluate`" in text
    assert "Operations were not counted" in text
    assert "mJ" not in text
    assert "%" not in text


def test_its_code_runs(whole, published, tmp_path, monkeypatch):
    """Both ways of use, as they stand in the card."""
    tracking.connect(published.config.tracking.uri)
    published.client.set_registered_model_alias("tiny", "champion", "1")
    registry.write_model(tmp_path, published.network.state_dict(), whole)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", markdown(whole), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        scope = {}
        exec(block, scope)
        assert tuple(scope["logits"].shape) == (1, 3)
