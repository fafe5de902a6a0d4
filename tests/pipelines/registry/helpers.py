"""A run of which there is a checkpoint, and what its network makes of images."""

import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.network import normalise
from pipelines.storage import open_store

METRICS = {
    "count": 21.0,
    "top1": 1 / 3,
    "top5": 1.0,
    "loss": 1.5,
    "best_top1": 0.5,
    "flips": 0.01,
    "firing": 0.125,
    "sops": 1234567.0,
    "macs": 89.0,
    "energy_mj/paper_table2": 0.0005,
    "size_mb": 0.0123,
}


def logits(network, config, images):
    """What a network makes of images, without `Predictor`."""
    batch = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), config.data, torch.device("cpu"))
    with torch.inference_mode():
        return network(batch).mean(0).numpy()


def committed_run(config, folder, network, metrics, *, offset=0):
    """A store with one checkpoint of the network."""
    store = open_store(str(folder))
    tensors, tree = checkpoints.model_tensors(network), config.model_dump(mode="json")
    position = Position(epoch=4, offset=offset, step=16)
    checkpoints.save(claim(store, "a driver"), Checkpoint(position, tensors, {}, {}, tree, metrics, {}, "0.1.0+gabc"))
    return store
