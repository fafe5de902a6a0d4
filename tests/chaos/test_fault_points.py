"""A kill, or an error, at each point of a checkpoint's way: what was committed loads, and little is lost."""

import random

import pytest

from pipelines.storage import open_store
from tests.chaos.campaign import EVERY, TOTAL

TIMES = 10  # kills at each point
TAKEN = TOTAL // EVERY  # checkpoints of a run
FILES = 4  # passes of `checkpoint.upload` for each; of the others one
POINTS = ("write", "upload", "manifest", "commit", "verify", "prune")
BEHIND_THE_MARKER = ("verify", "prune")
# Steps of a tenth of a second: a checkpoint takes some of them, and is stored before the next one is due.
PACE = "data.batch.rank0=sleep:0.1, checkpoint.upload=sleep:0.04"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def _random_pass(rng, point):
    return rng.randint(1, TAKEN * (FILES if point == "upload" else 1))


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_at_most_the_interval_in_flight(campaign, point):
    """Between two checkpoints up to EVERY - 1 steps are not stored yet; those of the one in flight come on top.

    So a kill before the marker costs less than 2 * EVERY steps: EVERY of the checkpoint that was being stored, and what
    was trained beside that, which is less than EVERY, else the next one would be due. Behind the marker it costs less
    than EVERY.
    """
    rng, expected = random.Random(f"kill {point}"), campaign.straight()
    bound = EVERY - 1 if point in BEHIND_THE_MARKER else 2 * EVERY - 1
    worst = 0
    for turn in range(TIMES):
        name, at = f"{point}-{turn}", _random_pass(rng, point)
        recipe = campaign.recipe(name)
        (rank,) = campaign.start(recipe, faults=[f"checkpoint.{point}=crash@{at}, {PACE}"])
        assert rank.wait() == -9, rank.said
        newest, position = campaign.newest(name)
        assert rank.step - position.step <= bound, (at, newest, rank.said)
        worst = max(worst, rank.step - position.step)
        (rank,) = campaign.finish(recipe)
        assert rank.resumed_at == position.step
        assert campaign.final(name) == expected
        assert not _left_behind(campaign.folder / name)
    print(f"checkpoint.{point}: {TIMES} of {TIMES} killed, at most {worst} of {bound} steps lost, equal", flush=True)


def _left_behind(folder):
    """Checkpoints without a marker."""
    keys = open_store(str(folder)).keys("attempt-")
    marked = {key.split("/")[0] for key in keys if key.endswith("/COMMITTED")}
    return {key.split("/")[0] for key in keys} - marked


@pytest.mark.parametrize("point", POINTS)
def test_an_error_once_ends_nothing(campaign, point):
    expected = campaign.straight()
    at = _random_pass(random.Random(f"error {point}"), point)
    recipe = campaign.recipe(point)
    (rank,) = campaign.start(recipe, faults=[f"checkpoint.{point}=error@{at}, {PACE}"])
    assert rank.wait() == 0, rank.said
    assert ("old checkpoints could not be removed" if point == "prune" else "could not be stored") in rank.said
    assert f"injected at checkpoint.{point}" in rank.said
    assert rank.step == TOTAL
    assert campaign.final(point) == expected
