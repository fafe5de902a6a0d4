"""When an export is as near to its network as float32 allows, on sums by hand; and what is missing."""

import numpy as np
import pytest

from agmm.export.agreement import agree, distance
from agmm.export.extras import Missing, need
from agmm.packed.verify import Differs

TRUTH = np.stack([np.eye(4)[row % 4] for row in range(100)])


def off(by, rows):
    """The truth, but the first logit of so many inputs is off by so much."""
    logits = TRUTH.copy()
    logits[:rows, 0] += by
    return logits


def test_distance_by_hand():
    found = distance(TRUTH, off(2.0, 8))  # of 8 inputs, two are of class 0 and stay so
    assert (found.largest, found.median, found.other_class) == (2.0, 0.0, 6)


def test_a_few_spikes_more_are_float32s_own_and_half_of_the_inputs_off_are_not():
    agree("It", off(0.3, 49), TRUTH, TRUTH)
    with pytest.raises(Differs, match="It does not answer as the network does: from the network"):
        agree("It", off(0.3, 51), TRUTH, TRUTH)
    agree("It", off(0.3, 100), TRUTH, off(0.1, 1))  # up to four times what float32 does on any
    with pytest.raises(Differs, match="does not answer"):
        agree("It", off(0.41, 100), TRUTH, off(0.1, 1))


def test_other_classes_are_allowed_where_float32_changes_them_too():
    agree("It", off(2.0, 3), TRUTH, TRUTH)  # two inputs of other classes
    with pytest.raises(Differs, match="too many inputs another class"):
        agree("It", off(2.0, 4), TRUTH, TRUTH)
    agree("It", off(2.0, 4), TRUTH, off(2.0, 3))


def test_nan_is_no_agreement():
    with pytest.raises(Differs):
        agree("It", off(np.nan, 100), TRUTH, TRUTH)


def test_a_missing_library_names_the_command():
    with pytest.raises(Missing, match=r"needs the Python package no_such_library, .*, pip install '\.\[export\]'$"):
        need("no_such_library")


def test_neurobench_is_installed_without_what_its_metrics_do_not_use(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "neurobench", None)
    with pytest.raises(Missing, match=r"pip install --no-deps neurobench snntorch$"):
        need("neurobench")
