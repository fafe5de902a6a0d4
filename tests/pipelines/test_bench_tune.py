"""ASHA against random search: what is replayed, what is made of it, and that curves are kept."""

import json
import math
import time

import pytest

from pipelines.benchmarks.anytime import Found, Repeat, found_by, rows_of_searches
from pipelines.benchmarks.curves import Curve, Curves, Key, _Clock, read_curves, train_curve, train_curves
from pipelines.benchmarks.replay import replay
from pipelines.benchmarks.tune import Sizes, bench
from pipelines.config import parse_config
from pipelines.errors import UserError

EPOCHS = 3


@pytest.fixture
def config(tiny_tree):
    def make(scheduler="none", budget=None, **tune):
        settings = {"scheduler": scheduler, "epochs": budget, "concurrent": 2, "trials": 6, "reduction": 3} | tune
        tree = tiny_tree | {"optim": {"lr": 0.1, "epochs": EPOCHS}, "tune": settings}
        return parse_config(tree, origin="test")

    return make


def _curves(*ends):
    """Curves that rise to these ends, each epoch a step of a tenth."""
    return {
        number: Curve(top1=tuple(end - 0.1 * left for left in (2, 1, 0)), seconds=(1.0,) * EPOCHS)
        for number, end in enumerate(ends, start=1)
    }


def test_random_search_trains_in_full_two_at_a_time_until_its_budget_is_used_up(config):
    search = replay(config(budget=8), _curves(0.5, 0.6, 0.7, 0.8))
    order = [(each.number, each.epoch) for each in search.reports]
    assert order == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 1), (4, 1)]
    found = found_by(search, epochs=EPOCHS, budget=8)
    assert math.isnan(found.final[3])
    assert found.final[4:] == pytest.approx([0.5, 0.6, 0.6, 0.6])
    assert (found.begun, found.finished, found.spent, found.is_exhausted) == (4, 2, 8, False)


def test_asha_ends_the_worse_at_the_rung_and_sees_more_of_the_same_list(config):
    curves = _curves(0.9, 0.8, 0.5, 0.4, 0.3, 0.2)
    search = replay(config("asha", budget=10), curves)
    ended = {each.number: each.epoch for each in search.reports}
    assert ended[1] == EPOCHS
    assert all(ended[number] == 1 for number in (3, 4, 5, 6))
    assert search.begun == 6
    assert search.is_exhausted


def test_a_curve_that_ends_early_is_a_trial_that_failed(config):
    curves = _curves(0.5, 0.6) | {1: Curve(top1=(0.3,), seconds=(1.0,), failure="the loss is not finite")}
    search = replay(config(trials=2), curves)
    assert [each.epoch for each in search.reports if each.number == 1] == [1]
    assert found_by(search, epochs=EPOCHS, budget=6).finished == 1


def test_rows_pair_the_searches_by_repeat():
    def found(end):
        return Found(final=[end], seen=[end], begun=1, finished=1, spent=1, is_exhausted=False)

    repeats = [
        Repeat(1, 0.9, {"ASHA": found(0.8), "random": found(0.7)}),
        Repeat(2, 0.9, {"ASHA": found(0.8), "random": found(0.9)}),
        Repeat(3, 0.9, {"ASHA": found(0.9), "random": found(0.8)}),
    ]
    rows = {row["name"]: row for row in reversed(rows_of_searches(repeats))}
    assert rows["repeats won"]["ours"] == 2
    assert rows["repeats won"]["peer"] == 1
    assert rows["difference of the ends, mean of pairs"]["ours"] == pytest.approx(10 / 3)
    assert rows["its standard error"]["ours"] == pytest.approx(11.547 / math.sqrt(3), rel=1e-3)
    assert rows["regret against the best of all, mean"]["peer"] == pytest.approx(10)


def test_a_curve_is_trained_for_real_and_again_the_same(config):
    one = config().model_copy(update={"tune": None})
    folder = one.data.uri
    curve = train_curve(one, folder)
    assert len(curve.top1) == len(curve.seconds) == EPOCHS
    assert train_curve(one, folder).top1 == curve.top1
    lost = train_curve(one.model_copy(update={"optim": one.optim.model_copy(update={"lr": 1e30})}), folder)
    assert len(lost.top1) < EPOCHS
    assert lost.failure.startswith("the loss is nan")


def test_the_first_epoch_is_timed_from_its_first_batch_though_the_loop_marks_every_batch():
    clock = _Clock()
    clock.mark("first batch")
    time.sleep(0.05)
    clock.mark("first batch")
    clock.epoch({"top1": 0.5})
    assert clock.seconds[0] >= 0.05


def test_curves_of_another_recipe_or_a_damaged_file_are_refused(config, tmp_path):
    path = tmp_path / "curves.json"
    known = read_curves(path, config(), "digest")
    assert known.curves == {}
    known.curves[str(Key(1, 1))] = Curve(top1=(0.5,), seconds=(1.0,))
    path.write_text(known.model_dump_json())
    assert read_curves(path, config(), "digest").of(1)[1].top1 == (0.5,)
    with pytest.raises(UserError, match=r"data.digest: digest -> other"):
        read_curves(path, config(), "other")
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_curves(path, config(), "digest")


def test_nothing_is_trained_where_all_is_known(config, tmp_path):
    curves = Curves(recipe={}, curves={"1/1": Curve(top1=(0.5,), seconds=(1.0,))})
    train_curves({Key(1, 1): config()}, tmp_path, curves, tmp_path / "curves.json", 2)
    assert not (tmp_path / "curves.json").exists()


@pytest.mark.parametrize(("budget", "words"), [(3, "ends before"), (90, "more configurations in full")])
def test_sizes_with_nothing_to_compare_are_refused(config, tmp_path, budget, words):
    with pytest.raises(UserError, match=words):
        bench(config(), Sizes(2, 6, budget), tmp_path / "out", 1, print)


@pytest.mark.slow
def test_the_whole_bench_on_small_data(config, tmp_path):
    said = []
    result = bench(config(), Sizes(2, 3, 6), tmp_path / "out", 1, said.append)
    assert {row["name"] for row in result["rows"]} >= {"repeats won", "start of a trial's process, median"}
    assert (tmp_path / "out" / "anytime.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "result.json").read_text())["budget"] == 6
    bench(config(), Sizes(2, 3, 6), tmp_path / "out", 1, said.append)
    assert any(line.endswith("has 6") for line in said)
