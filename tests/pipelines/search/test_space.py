import math

import pytest

from pipelines.errors import UserError
from pipelines.search.searchers import random_draw
from pipelines.search.space import KEYS, applied, check_space, domains

_NOT_DRAWN = dict.fromkeys(("leak", "threshold", "surrogate_width"))


def _only(**space):
    return {"space": _NOT_DRAWN | space}


def test_every_field_of_the_space_has_its_place(searched):
    config = searched()
    assert list(KEYS) == list(type(config.tune.space).model_fields)
    for key in KEYS.values():
        value = config.model_dump()
        for part in key.split("."):
            value = value[part]


def test_a_draw_stays_within_its_field(searched):
    space = {
        "leak": {"uniform": [0.1, 0.7], "step": 0.2},
        "lr": {"loguniform": [0.001, 1]},
        "time_steps": {"uniform": [1, 4]},
        "method": {"choice": ["agmm", "vanilla"]},
    }
    draw = random_draw(searched(_only(**space)).tune.space, seed=0)
    drawn = [draw(number) for number in range(1, 301)]
    leaks = [round(values["leak"], 9) for values in drawn]
    assert set(leaks) == {0.1, 0.3, 0.5, 0.7}
    assert all(50 < leaks.count(leak) < 100 for leak in set(leaks)), "the ends are as likely as what is between"
    assert {values["time_steps"] for values in drawn} == {1, 2, 3, 4}
    assert all(type(values["time_steps"]) is int for values in drawn)
    assert 60 < sum(values["lr"] < 0.01 for values in drawn) < 140, "a third of the orders of magnitude"
    assert {values["method"] for values in drawn} == {"agmm", "vanilla"}


def test_what_is_drawn_is_set(searched):
    config = searched()
    run = applied(config, {"leak": 0.25, "lr": 0.01, "time_steps": 2, "gate_scope": "channel"})
    assert (run.model.neuron.leak, run.optim.lr, run.model.time_steps) == (0.25, 0.01, 2)
    assert run.model.gate.scope == "channel"
    assert run.tune is None
    assert applied(config, {}) == config.model_copy(update={"tune": None})


def test_a_method_without_a_gate_has_none(searched):
    config = searched(model={"gate": {"kind": "constant", "scope": "channel"}})
    assert applied(config, {"method": "vanilla", "gate_scope": "channel"}).model.gate.kind == "agmm"
    assert applied(config, {"method": "agmm", "gate_scope": "sample"}).model.gate.kind == "constant"


@pytest.mark.parametrize(
    ("space", "sections", "words"),
    [
        ({"leak": {"uniform": [0, 1.5]}}, {}, ["tune.space.leak", "1.5", "less than or equal to 1"]),
        ({"method": {"choice": ["agmm", "magic"]}}, {}, ["tune.space.method", "'magic'", "'vanilla'"]),
        ({"method": {"uniform": [0, 1]}}, {}, ["tune.space.method", "0.0"]),
        ({"time_steps": {"uniform": [1, 2.5]}}, {}, ["tune.space.time_steps", "whole numbers", "2.5"]),
        ({"time_steps": {"uniform": [1, 3], "step": 0.5}}, {}, ["tune.space.time_steps", "0.5"]),
        ({"leak": {"choice": [0.5, "0.5"]}}, {}, ["tune.space.leak", "'0.5'", "the same run"]),
        ({"leak": {"choice": [1, True]}}, {}, ["tune.space.leak", "the same run"]),
        ({"leak": {"uniform": [0, 0.9]}}, {"neuron": {"kind": "if"}}, ["tune.space.leak", "kind=if", "null"]),
        ({"threshold": {"uniform": [1, 2]}}, {"neuron": {"kind": "relu"}, "time_steps": 1}, ["tune.space.threshold"]),
        ({"time_steps": {"choice": [1, 2]}}, {"neuron": {"kind": "relu"}, "time_steps": 1}, ["tune.space.time_steps"]),
        ({"leak": {"uniform": [0, 0.9]}}, {"neuron": {"kind": "plif"}}, ["tune.space.leak", "0.05"]),
        ({"gate_scope": {"choice": ["sample", "channel"]}}, {"method": "vanilla"}, ["gate_scope", "the same run"]),
        ({"gate_scope": {"choice": ["sample", "channel"]}}, {"gate": {"kind": "none"}}, ["gate_scope", "kind=none"]),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(searched, space, sections, words):
    with pytest.raises(UserError) as refused:
        check_space(searched(_only(**space), model=sections))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("space", "kind", "words"),
    [
        ({"time_steps": {"choice": [1, 2]}}, "lif", "tune.space.time_steps cannot change"),
        ({"method": {"choice": ["agmm", "vanilla"]}}, "lif", "tune.space.method cannot change"),
        ({"leak": {"uniform": [0.1, 0.9]}}, "plif", "it is learned"),
    ],
)
def test_what_cannot_change_in_a_training_is_refused_of_pbt(searched, space, kind, words):
    with pytest.raises(UserError, match=words):
        check_space(searched(_only(**space) | {"scheduler": "pbt"}, model={"neuron": {"kind": kind}}))
    check_space(searched(_only(**space), model={"neuron": {"kind": kind}}))


def test_a_scope_may_be_drawn_beside_methods_of_which_one_has_a_gate(searched):
    space = {"gate_scope": {"choice": ["sample", "channel"]}, "method": {"choice": ["vanilla", "agmm"]}}
    check_space(searched(_only(**space)))
    check_space(searched(_only(**space), model={"method": "vanilla"}))
    check_space(searched())


@pytest.mark.parametrize("step", [0.3, 2])
def test_a_step_that_misses_the_end_is_refused(searched, step):
    with pytest.raises(UserError, match="step must divide high - low"):
        searched(_only(leak={"uniform": [0, 1], "step": step}))


def test_draws_follow_from_seed_and_number(searched):
    space = searched().tune.space
    one, again, another = random_draw(space, 7), random_draw(space, 7), random_draw(space, 8)
    assert [one(3), one(1), one(2)] == [again(3), again(1), again(2)]
    assert one(1) != another(1)
    assert one(1) != one(2)
    assert all(0 <= one(number)["leak"] <= 1 for number in range(20))
    assert math.isclose(domains(space)["surrogate_width"].low, 0.5)
