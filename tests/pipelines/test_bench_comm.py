"""That the benchmark of communication runs, and that its bytes are those that can be counted on paper."""

import json

import pytest

from agmm.exchange.sign import message_bytes
from pipelines.benchmarks import comm
from pipelines.benchmarks.comm import Size
from pipelines.benchmarks.ranks import together
from pipelines.benchmarks.wire import bytes_sent_by
from pipelines.config.model import ModelConfig
from pipelines.errors import ServiceError
from pipelines.network import build_network

pytestmark = pytest.mark.timeout(200)
TINY = Size(width=8, classes=3, stem="cifar", resolution=16, batch_size=2, time_steps=1)
_HEADERS = 1100  # gloo sends 21 messages to each other rank in a sum, an exchange and a gathering, each with 48 bytes
_UNEVEN = 16  # three ranks cannot share a sum alike


def _on_paper(ranks):
    """Bytes that one rank sends for the gradients of `TINY`: in float32, and as signs with all else in bfloat16."""
    network = build_network(ModelConfig(arch=TINY.arch, num_classes=3, width=8, stem="cifar", time_steps=1))
    latent = [layer.weight for layer in network.modules() if getattr(layer, "weight_bits", 32) == 1]
    every, signed = sum(p.numel() for p in network.parameters()), sum(w.numel() for w in latent)
    ring = 2 * (ranks - 1) / ranks
    signs = 2 * (ranks - 1) * sum(message_bytes(-(-len(w) // ranks), w[0].numel()) for w in latent)
    return ring * 4 * every, signs + ring * 2 * (every - signed)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_as_many_as_on_paper(ranks, tmp_path):
    result = comm.bench(2, ranks, lambda _: None, TINY)
    json.dumps(result)
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 2 * 4 + 2 * 6
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows.values())
    plain, signs = _on_paper(ranks)
    names = ("fp32: a rank sends, a step", "sign: in a whole step", "sign: the same, between whole steps")
    for name, paper in zip(names, (plain, plain / 2, signs), strict=True):
        assert -_UNEVEN < rows[name]["ours"] * 1e6 - paper < _HEADERS * (ranks - 1), name


def test_nothing_is_sent_where_nothing_is_sent():
    assert bytes_sent_by(lambda: None) == 0


def test_a_rank_that_fails_is_told(tmp_path):
    with pytest.raises(ServiceError, match="Rank 0 of 1 ended with 1"):
        together("pipelines.benchmarks.comm_rank:measure", {}, 1, tmp_path)
