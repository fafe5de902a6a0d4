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
_HEADERS = 48 * 4 * 8  # of gloo: for each message, of each collective, of each bucket, at the most


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
    assert len(rows) == 2 * 3 + 2 * 5
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows.values())
    plain, signs = _on_paper(ranks)
    measured = {name: rows[name]["ours"] * 1e6 for name in ("fp32: a rank sends, a step", "sign: in a whole step")}
    measured["between"] = rows["sign: the same, between whole steps"]["ours"] * 1e6
    assert measured["fp32: a rank sends, a step"] == pytest.approx(plain, rel=0.01, abs=_HEADERS)
    assert measured["sign: in a whole step"] == pytest.approx(plain / 2, rel=0.01, abs=_HEADERS)
    assert measured["between"] == pytest.approx(signs, rel=0.01, abs=_HEADERS)


def test_nothing_is_sent_where_nothing_is_sent():
    assert bytes_sent_by(lambda: None) == 0


def test_a_rank_that_fails_is_told(tmp_path):
    with pytest.raises(ServiceError, match="Rank 0 of 1 ended with code 1"):
        together("pipelines.benchmarks.comm_rank:measure", {}, 1, tmp_path)
