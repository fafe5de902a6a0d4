"""One flipped bit or a truncation, anywhere in a checkpoint: refused before use, by name; the one before is used."""

import random
import re

import pytest

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.errors import ServiceError
from pipelines.storage import open_store

TIMES = 100
FILES = ("model.safetensors", "optimizer.safetensors", "signs.safetensors", "state.json")
DESCRIBING = ("manifest.json", "COMMITTED")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def trained(campaign):
    """A run's store, its folder, and the names of its checkpoints."""
    campaign.finish(campaign.recipe("run"))
    store = open_store(str(campaign.folder / "run"))
    return store, campaign.folder / "run", checkpoints.committed(store)


def _damaged(content, rng):
    content = bytearray(content)
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    return content


@pytest.mark.parametrize("files", [FILES, DESCRIBING])
def test_all_damages_are_refused_by_name(trained, files):
    store, folder, (*_, before, newest) = trained
    rng = random.Random(files[0])
    for turn in range(TIMES):
        file = files[turn % len(files)]
        path = folder / newest / file
        right = path.read_bytes()
        path.write_bytes(_damaged(right, rng))
        _assert_refused(store, newest, before, file)
        path.write_bytes(right)
    assert checkpoints.newest_usable(store, print) == newest
    checkpoints.load(store, newest)


def _assert_refused(store, newest, before, file):
    # the marker holds the manifest's hash: either of them may be the one that is damaged
    named = re.escape(f"{store.uri}/{newest}/{'manifest.json' if file == 'COMMITTED' else file} ")
    for use in (checkpoints.verify, checkpoints.load):
        with pytest.raises(ServiceError, match=named):
            use(store, newest)
    said = []
    assert checkpoints.newest_usable(store, said.append) == before
    assert re.search(named, said[0])
