"""The model of exchanges among many workers: sums that can be done on paper, and what must hold of any."""

import itertools
from dataclasses import astuple, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agmm.exchange.sign import message_bytes
from pipelines.benchmarks.scale_exchange import (
    ALGORITHMS,
    KINDS,
    Bucket,
    Cluster,
    Costs,
    Profile,
    exchange_seconds,
    features,
    mean_step,
    step_seconds,
)
from pipelines.benchmarks.scale_model import (
    Link,
    Spread,
    fitted,
    gathered,
    hierarchical,
    overlapped,
    ring,
    spread_of,
    spread_out,
    tree,
)

LINK, FAST = Link(alpha=1.0, beta=0.5), Link(alpha=0.25, beta=0.125)
FREE = Costs(0, 1, 0, 0, 0)
BUCKETS = (Bucket(100, ((4, 9), (8, 4))), Bucket(50))


def test_a_ring_on_paper():
    assert ring(8, 4, LINK) == 2 * 3 * (1 + 8 / 4 * 0.5)
    assert ring(8, 1, LINK) == 0


def test_a_tree_on_paper():
    # four workers, two levels: three stages beside the pieces, of which sqrt(3 * 2 * 12 * 0.5 / 1) = 6 are best
    assert tree(12, 4, LINK) == pytest.approx((3 + 6) * (1 + 2 * 12 / 6 * 0.5))
    assert tree(12, 1, LINK) == 0
    assert tree(12, 5, Link(0, 0.5)) == 12  # messages that cost nothing are as small as can be


@given(st.floats(1, 1e9), st.integers(2, 1024), st.floats(1e-6, 1e-2), st.floats(1e-11, 1e-6), st.floats(1, 1e4))
def test_no_other_number_of_pieces_makes_a_tree_faster(size, workers, alpha, beta, pieces):
    stages = 2 * int(np.ceil(np.log2(workers))) - 1
    assert tree(size, workers, Link(alpha, beta)) <= (stages + pieces) * (alpha + 2 * size / pieces * beta) * (1 + 1e-9)


def test_nodes_on_paper():
    # two nodes of four: three messages inside each way, of a quarter each; then one each way of half
    inside, among = 2 * 3 * (0.25 + 2 * 0.125), 2 * 1 * (1 + 4 * 0.5)
    assert hierarchical(8, 2, 4, LINK, FAST) == inside + among


def test_signs_on_paper():
    # to three of the same node, and to four of the other, whose bytes share a link with those of three others
    assert spread_out(2, 8, 4, LINK, FAST) == 1 + 3 * 2 * 0.125 + 4 * 4 * 2 * 0.5
    assert spread_out(2, 4, 4, LINK, FAST) == 0.25 + 3 * 2 * 0.125
    assert spread_out(2, 1, 1, LINK, FAST) == 0
    assert gathered(2, 8, LINK) == 7 * (1 + 2 * 0.5)
    rows_of_one = Bucket(100, ((4, 9), (8, 4))).part(4)  # one row of 9 signs, two of 4 signs
    assert rows_of_one == (2 + 4) + (1 + 8) == message_bytes(1, 9) + message_bytes(2, 4)


def test_an_exchange_of_each_kind_on_paper():
    link = Link(0.0, 1.0)  # seconds are bytes
    cluster, costs = Cluster(2, 1, link, link), Costs(0, 1, 0, cast=1000, code=100_000)
    first = BUCKETS[0]
    assert exchange_seconds(first, "fp32", "ring", cluster, costs) == 400
    assert exchange_seconds(first, "bf16", "ring", cluster, costs) == 200 + 1000 * 100
    signs, others = 36 + 32, 32
    sent = 2 * others + 2 * first.part(2)
    assert exchange_seconds(first, "sign", "ring", cluster, costs) == sent + 1000 * others + 5 * 100_000 * signs
    assert exchange_seconds(BUCKETS[1], "sign", "ring", cluster, costs) == 100 + 1000 * 50  # no sign in it
    alone = Cluster(1, 1, link, link)
    assert [exchange_seconds(first, kind, "tree", alone, costs) for kind in KINDS] == [0, 0, 0]


def test_exchanges_behind_the_backward_pass_on_paper():
    # ready at 2 and 5, of 6 seconds: the first is done at 6, so the second at 8, then one second more
    assert overlapped(6, [2, 5], [4, 2]) == 9
    assert overlapped(6, [2, 5], [3, 0]) == 6
    profile = Profile(BUCKETS, (2.0, 5.0), 6.0)
    takes = {"fp32": 4.0, "bf16": 2.0, "sign": 1.0}
    assert step_seconds(profile, "fp32", lambda _, kind: takes[kind]) == 2 + 4 + 4 + 1
    assert step_seconds(profile, "sign", lambda _, kind: takes[kind]) == 6 + 1 + 1, "signs are waited for"
    assert step_seconds(profile, "sign", lambda _, kind: takes[kind], whole=True) == 5 + 2 + 1
    assert mean_step(profile, "sign", lambda _, kind: takes[kind]) == 8  # of 8 and 8


def test_a_device_that_is_twice_as_fast():
    assert Profile(BUCKETS, (2.0, 5.0), 6.0).times(0.5) == Profile(BUCKETS, (1.0, 2.5), 3.0)


def test_the_slowest_of_many():
    spread = Spread(0.1)
    draws = np.exp(0.1 * np.random.default_rng(0).standard_normal((20_000, 16)))
    assert spread.slowest(16) == pytest.approx(draws.max(axis=1).mean(), rel=2e-3)
    assert spread.slowest(1) == pytest.approx(np.exp(0.1**2 / 2), rel=1e-4)
    assert Spread(0.0).slowest(1024) == 1
    assert spread_of(draws[:, 0]).sigma == pytest.approx(0.1, rel=0.02)
    assert spread_of([*draws[:, 0], 1e6]).sigma == pytest.approx(0.1, rel=0.02)


TRUE = Costs(message=150e-6, overhead=1.06, byte=0.8e-9, cast=1.1e-9, code=7e-9)
LARGE = (Bucket(300_000, ((64, 576), (128, 1152))), Bucket(700_000, ((256, 2304),)), Bucket(20_000))


def _samples(noise):
    shapes = itertools.product(KINDS, (2, 3, 4), (50.0, 200.0, 1000.0))
    rows = np.array([features(LARGE, *shape) for shape in shapes])
    errors = np.exp(noise * np.random.default_rng(1).standard_normal(len(rows)))
    return rows, rows @ np.array(astuple(TRUE)) * errors


def test_a_fit_finds_the_costs_that_measurements_were_made_of():
    rows, seconds = _samples(0.0)
    assert fitted(rows, seconds) == pytest.approx(astuple(TRUE), rel=1e-6)
    rows, seconds = _samples(0.02)
    again = rows @ fitted(rows, seconds)
    assert np.abs(again / (rows @ np.array(astuple(TRUE))) - 1).max() < 0.03


def test_a_fit_is_not_bent_by_one_disturbed_sample():
    rows, seconds = _samples(0.0)
    seconds[4] *= 3
    assert fitted(rows, seconds) == pytest.approx(astuple(TRUE), rel=0.02)


def test_workers_that_share_a_core_on_paper():
    assert TRUE.crowded(2) == Costs(TRUE.message, TRUE.overhead, 1.6e-9, 2.2e-9, 14e-9)
    alone, crowded = (np.array(features(LARGE, "sign", 4, 50.0, crowd)) for crowd in (1.0, 2.0))
    assert crowded / alone == pytest.approx([1, 1, 2, 2, 2])


def test_signs_made_and_read_on_paper():
    four, nodes = Cluster(4, 1, LINK, FAST), Cluster(8, 4, LINK, FAST)
    # own 100, made and read; a quarter each of four ranks' read; 25 averages, made and read; all answers read
    assert four.coded(Bucket(100, ((10, 10),)), "ring") == 2 * 100 + 4 * 25 + 2 * 25 + 100
    # a share of 25: made and read; half of it of two nodes read; 12.5 averages, made and read; all answers read
    assert nodes.coded(Bucket(100, ((10, 10),)), "hierarchical") == 2 * 25 + 2 * 12.5 + 2 * 12.5 + 100


def test_a_fit_of_too_few():
    rows, seconds = _samples(0.0)
    with pytest.raises(ValueError, match="4 samples cannot tell 5 costs"):
        fitted(rows[:4], seconds[:4])


def test_features_are_all_that_an_exchange_costs():
    for kind, workers, rate in itertools.product(KINDS, (2, 3, 7), (50.0, 1000.0)):
        link = TRUE.link(rate)
        whole = sum(exchange_seconds(b, kind, "ring", Cluster(workers, 1, link, link), TRUE) for b in LARGE)
        assert np.dot(features(LARGE, kind, workers, rate), astuple(TRUE)) == pytest.approx(whole)
    assert len(features(LARGE, "sign", 2, 50.0)) == len(fields(Costs))


_clusters = st.builds(
    lambda each, nodes, alpha, beta, better: Cluster(
        each * nodes, each, Link(alpha, beta), Link(alpha * better, beta * better)
    ),
    *(
        st.sampled_from([1, 2, 8]),
        st.integers(1, 128),
        st.floats(1e-6, 1e-3),
        st.floats(1e-11, 1e-7),
        st.floats(0.01, 1),
    ),
)


@given(_clusters, st.sampled_from(KINDS), st.sampled_from(ALGORITHMS))
def test_more_workers_slower_links_or_more_numbers_never_make_an_exchange_faster(cluster, kind, algorithm):
    def seconds(cluster, bucket=LARGE[0]):
        return exchange_seconds(bucket, kind, algorithm, cluster, FREE)

    now = seconds(cluster) * (1 - 1e-9)
    slower = Link(cluster.outer.alpha * 2, cluster.outer.beta * 2)
    assert seconds(Cluster(cluster.workers, cluster.each, slower, cluster.inner)) >= now
    assert seconds(cluster, Bucket(LARGE[0].numbers + 1000, LARGE[0].latent)) >= now
    if kind != "sign":  # of rows that do not divide some workers have none, so that more may even get faster
        assert seconds(Cluster(cluster.workers * 2, cluster.each, cluster.outer, cluster.inner)) >= now


@given(_clusters, st.sampled_from(ALGORITHMS))
def test_fewer_bytes_are_never_slower(cluster, algorithm):
    fp32, bf16 = (exchange_seconds(LARGE[0], kind, algorithm, cluster, FREE) for kind in ("fp32", "bf16"))
    assert bf16 <= fp32 * (1 + 1e-9)


@given(st.floats(0.01, 1), st.integers(1, 512))
def test_the_slowest_of_more_is_slower(sigma, workers):
    assert Spread(sigma).slowest(2 * workers) > Spread(sigma).slowest(workers)
    assert Spread(2 * sigma).slowest(2 * workers) > Spread(sigma).slowest(2 * workers)
