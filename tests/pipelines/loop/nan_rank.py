"""One rank of a run whose rank 1 gets NaN gradients at step 3: `python nan_rank.py RECIPE RANK WORLD RENDEZVOUS`."""

import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from agmm.loop import NotFinite
from pipelines import network as networks
from pipelines.loop import worker
from pipelines.loop.world import Outside, World
from pipelines.network import build_network
from pipelines.recipe import load_recipe
from pipelines.storage import open_store


def main(recipe, rank, world, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    config, seen = load_recipe(recipe), []

    def spoil(layer, _inputs, output):
        if layer.training and output.requires_grad:
            seen.append(1)
        if len(seen) >= 3:
            output.register_hook(lambda gradient: gradient * math.nan)

    def build(model):
        network = build_network(model)
        if rank == 1:
            network.get_submodule("stages.1.0.conv").register_forward_hook(spoil)
        return network

    networks.build_network = build
    outside = Outside(open_store(config.checkpoint.uri), lambda row, step: None, lambda item: None, lambda row: None)
    try:
        worker.run(config, World(rank, world, torch.device("cpu")), outside, Path(config.data.uri), "test")
    except NotFinite as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
