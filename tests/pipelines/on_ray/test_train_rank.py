"""One rank's services, without Ray: what it trains, tells and stores."""

import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.loop.world import World
from pipelines.on_ray.work import Work
from pipelines.on_ray.worker import train_rank
from pipelines.storage import open_store
from pipelines.version import code_version


class _Queue(list):
    def put(self, item, block=True, timeout=None):
        self.append(item)


def test_a_rank_joins_the_services_to_the_loop(tiny_tree, tiny_data):
    config = parse_config(tiny_tree | {"optim": {"lr": 0.1, "epochs": 2}}, origin="tiny")
    told, epochs = _Queue(), []
    work = Work(config, "search/trial-0001", "session", tiny_data, code_version(), told)
    metrics = train_rank(work, World(0, 1, torch.device("cpu")), on_epoch=epochs.append)

    assert [each["epoch"] for each in epochs] == [1, 2]
    assert epochs[-1] == metrics | {"epoch": 2}
    rows = [item for item in told if "metrics" in item]
    assert [row["metrics"]["val/top1"] for row in rows if "val/top1" in row["metrics"]] == [e["top1"] for e in epochs]
    assert [row["step"] for row in rows if "val/top1" in row["metrics"]] == [4, 8]
    phases = [item["pulse"]["phase"] for item in told if "pulse" in item]
    assert phases[-1] == "end"
    assert all(item["pulse"]["rank"] == 0 for item in told if "pulse" in item)
    assert {"loss", "epoch", "eta", "images_per_second"} <= next(item for item in told if "loss" in item).keys()
    store = open_store(f"{config.checkpoint.uri}/search/trial-0001")
    name = checkpoints.committed(store)[-1]
    assert {"tag": "agmm.checkpoint", "value": name} in told
    assert checkpoints.load(store, name).position.epoch == 2

    again = []
    assert train_rank(work, World(0, 1, torch.device("cpu")), on_epoch=again.append) == metrics
    assert again == epochs[-1:], "a rank that had ended tells of its last epoch again"
