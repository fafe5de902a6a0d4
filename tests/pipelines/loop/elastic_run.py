"""One rank of a run without Ray that writes which samples each step takes, and stops when it is told to.

`python elastic_run.py RECIPE RANK WORLD RENDEZVOUS RECORD STOP_AFTER`: rank 0 is asked to save and stop after so many
steps of this process; 0 is never. RECORD gets a JSON line [epoch, step, ids] for each batch that the rank takes.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.data.loaders import BatchLoader
from pipelines.errors import Stopped
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.recipe import load_recipe
from pipelines.storage import open_store


def record(path):
    """Have training loaders write down what they give."""
    real = BatchLoader.epoch

    def epoch(self, epoch, start_step=0):
        ids, size = self._share.ids(epoch), self._share.batch_size
        for step, batch in enumerate(real(self, epoch, start_step), start=start_step):
            if self._share.split == "train":
                with path.open("a") as out:
                    out.write(json.dumps([epoch, step, ids[step * size : (step + 1) * size].tolist()]) + "\n")
            yield batch

    BatchLoader.epoch = epoch


def main(recipe, rank, world, rendezvous, path, stop_after):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    config, looks = load_recipe(recipe), []
    record(Path(path))

    def stop_requested():
        looks.append(None)
        return len(looks) == stop_after

    outside = Outside(
        open_store(config.checkpoint.uri),
        lambda row, step: None,
        lambda item: None,
        lambda metrics: None,
        stop_requested=stop_requested if rank == 0 else lambda: False,
    )
    try:
        run(config, World(rank, world, torch.device("cpu")), outside, Path(config.data.uri), "test")
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(9)


if __name__ == "__main__":
    recipe, rank, world, rendezvous, path, stop_after = sys.argv[1:]
    main(recipe, int(rank), int(world), rendezvous, path, int(stop_after))
