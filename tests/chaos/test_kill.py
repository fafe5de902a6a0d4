"""SIGKILL at random steps, through FFCV and mostly mid-epoch: resumed equals uninterrupted, byte for byte."""

import random
import time

import pytest

from agmm.kernels.replay import MODES
from tests.chaos.campaign import STEPS, TOTAL, end

RUNS, PAIRS = 50, 20  # of one process, of two gloo workers
SAME_SEED = 10  # runs in a row with the same recipe
AGAIN = 0.3  # how many runs are killed once more after their resume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.mark.parametrize(("world", "runs"), [(1, RUNS), (2, PAIRS)])
def test_killed_and_resumed_equals_uninterrupted(campaign, world, runs):
    rng, resumed = random.Random(world), []
    for turn in range(runs):
        seed, name, started = turn // SAME_SEED, f"cut-{world}-{turn}", time.monotonic()
        expected = campaign.straight("ffcv", seed, world)
        recipe = campaign.recipe(name, "ffcv", seed)
        for _ in range(1 + (rng.random() < AGAIN)):
            _kill_once(campaign, recipe, world, rng, done=campaign.newest(name)[1].step)
        recipe = campaign.recipe(name, "ffcv", seed, run={"memory": MODES[turn % 3]})  # which changes no byte
        last = campaign.finish(recipe, world)[0]
        assert campaign.final(name) == expected, f"run {turn}: {name} differs"
        resumed.append(last.resumed_at)
        print(f"{world} ranks, run {turn + 1} of {runs}: resumed at step {last.resumed_at}, equal,", end=" ")
        print(f"{time.monotonic() - started:.0f} s", flush=True)
    assert sum(step % STEPS != 0 for step in resumed) >= runs / 3


def _kill_once(campaign, recipe, world, rng, done):
    """Have one rank killed, by itself before a batch or from outside soon after a step; the others end by then.

    done: steps that the run goes on from.
    """
    victim, batches = rng.randrange(world), TOTAL - done
    if rng.random() < 0.5 or batches < 10:
        faults = [""] * victim + [f"data.batch.rank{victim}=crash@{rng.randint(1, max(batches, 1))}"]
        ranks = campaign.start(recipe, world, faults)
    else:
        ranks = campaign.start(recipe, world)
        ranks[0].wait_for_step(done + rng.randint(1, batches - 8))  # it takes some more until it is seen
        time.sleep(rng.random() * 0.1)
        ranks[victim].kill()
    code = ranks[victim].wait()
    assert code == (-9 if batches else 0), ranks[victim].said  # where all is trained no batch is taken
    end(ranks)
