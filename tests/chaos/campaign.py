"""Small runs that are killed, gone on with, and compared with runs that were not."""

from __future__ import annotations

import json
import time
import uuid

import yaml

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.checkpoint import PARTS
from pipelines.storage import open_store, sha256_in
from tests.timings import without_timings

STEPS = 12  # of an epoch: 48 images in batches of 4
TOTAL = 3 * STEPS
EVERY = 4


class Campaign:
    """Runs of one recipe in a folder of their own."""

    def __init__(self, server, data, folder):
        self._server, self._data, self.folder = server, data, folder
        self._straight = {}

    def recipe(self, name, loader="torch", seed=0, **sections):
        """The path of a recipe whose checkpoints go to the folder `name`."""
        augment = {"crop": "random_resized", "mix": {"mixup": 0.2}}
        uri = str(self._data)
        tree = {
            "name": "chaos",
            "seed": seed,
            "data": {"dataset": "tiny", "uri": uri, "resolution": 16, "batch_size": 4, "threads": 1, "loader": loader}
            | {"augment": augment},
            "model": {"arch": "agmm_resnet18", "num_classes": 3, "width": 4, "stem": "cifar", "time_steps": 2},
            "optim": {"lr": 0.1, "epochs": TOTAL // STEPS},
            "run": {"log_every": 1, "deterministic": True},
            "checkpoint": {"uri": str(self.folder / name), "every": EVERY, "keep": 3},
            "tracking": {"uri": f"sqlite:///{self.folder / 'mlflow.db'}"},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree | {key: tree[key] | value for key, value in sections.items()}))
        return path

    def start(self, recipe, world=1, faults=()):
        """Start all ranks of a run; `faults` has AGMM_FAULTS of each."""
        meeting = str(self.folder / uuid.uuid4().hex)
        faults = [*faults, *[""] * world]
        return [
            self._server.start(recipe, rank=rank, world=world, meeting=meeting, faults=faults[rank])
            for rank in range(world)
        ]

    def finish(self, recipe, world=1):
        """Run to the end; gives the ranks."""
        ranks = self.start(recipe, world)
        assert [rank.wait() for rank in ranks] == [0] * world, [rank.said for rank in ranks]
        return ranks

    def straight(self, loader="torch", seed=0, world=1):
        """What `final` gives for a run that nothing happens to."""
        key = (loader, seed, world)
        if key not in self._straight:
            name = f"straight-{loader}-{seed}-{world}"
            self.finish(self.recipe(name, loader, seed), world)
            self._straight[key] = self.final(name)
        return self._straight[key]

    def newest(self, name):
        """The newest committed checkpoint's name and position, which must load; ("", step 0) where there is none."""
        store = open_store(str(self.folder / name))
        names = checkpoints.committed(store)
        if not names:
            return "", checkpoints.Position()
        return names[-1], checkpoints.load(store, names[-1]).position

    def final(self, name):
        """Hashes of a finished run's newest checkpoint, and what else of it must not depend on what happened."""
        store = open_store(str(self.folder / name))
        newest = checkpoints.committed(store)[-1]
        checkpoints.verify(store, newest)
        state = json.loads(store.read(f"{newest}/state.json"))
        assert state["position"]["step"] == TOTAL
        state["metrics"] = without_timings(state["metrics"])
        del state["config"]["checkpoint"]["uri"], state["config"]["run"]["memory"]
        return {part: sha256_in(store, f"{newest}/{part}.safetensors") for part in PARTS} | {"state": state}


def end(ranks, seconds=5.0):
    """End those that are left of a run, which may see by themselves that one is gone."""
    deadline = time.monotonic() + seconds
    while not all(rank.has_ended() for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
