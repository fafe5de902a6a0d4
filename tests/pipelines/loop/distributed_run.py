"""One rank of a run without Ray: `python distributed_run.py RECIPE RANK WORLD RENDEZVOUS [DIE_AFTER_COMMITS]`."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines import network as networks
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.network import build_network
from pipelines.recipe import load_recipe
from pipelines.storage import open_store


def main(recipe, rank, world, rendezvous, die_after=0):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    config, commits, real_save = load_recipe(recipe), [], checkpoints.save

    def save(attempt, snapshot):
        commits.append(real_save(attempt, snapshot))
        if len(commits) == die_after:
            print("died on purpose", flush=True)
            os._exit(9)
        return commits[-1]

    def build(model):
        network = build_network(model)
        torch.nn.init.zeros_(network.head.weight)
        torch.nn.init.zeros_(network.head.bias)
        return network

    checkpoints.save, networks.build_network = save, build
    outside = Outside(
        open_store(config.checkpoint.uri), lambda row, step: None, lambda item: None, lambda metrics: None
    )
    metrics = run(config, World(rank, world, torch.device("cpu")), outside, Path(config.data.uri), "test")
    print(json.dumps(metrics))
    sys.stdout.flush()
    dist.barrier()  # a rank that left first would abort those that still talk to it
    dist.destroy_process_group()


if __name__ == "__main__":
    path, *numbers, meeting = sys.argv[1:5]
    main(path, int(numbers[0]), int(numbers[1]), meeting, *map(int, sys.argv[5:]))
