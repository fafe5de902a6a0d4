"""What a run keeps of the workers that it lost."""

import re

from pipelines.errors import UserError
from pipelines.on_ray.restarts import TAG, Restarts


class _Failed(Exception):
    def __init__(self, failures):
        self.worker_failures = failures


def _tags(items):
    return [item["value"] for item in items if item.get("tag") == TAG]


def test_a_run_that_starts_or_grows_has_no_restart():
    items = []
    restarts = Restarts(items.append)
    restarts.starting(2)
    restarts.placed({0: "one (10.0.0.1)"})
    restarts.starting(3)
    assert not items


def test_who_was_lost_where_and_with_how_many_it_went_on():
    items = []
    restarts = Restarts(items.append)
    restarts.placed({0: "one (10.0.0.1)", 1: "two (10.0.0.2)"})
    restarts.failed(_Failed({1: KeyError("x")}))
    why = "rank 1 on two (10.0.0.2): KeyError: 'x'"
    assert {"say": f"starting again: {why}"} in items
    (before,) = _tags(items)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: " + re.escape(why), before)
    restarts.starting(1)
    restarts.starting(2)  # a resize on purpose
    assert _tags(items) == [before, f"{before}; went on with 1 worker"]


def test_all_that_were_lost_at_once_are_in_one_line_and_the_newest_stay():
    items = []
    restarts = Restarts(items.append)
    for number in range(12):
        restarts.failed(_Failed({0: KeyError(number), 1: UserError("x" * 9000)}))
        restarts.starting(2)
    lines = _tags(items)[-1].splitlines()
    assert [
        int(re.search(r"rank 0: KeyError: (\d+); UserError: x+; went on with 2 workers$", line)[1]) for line in lines
    ] == [*range(2, 12)]
    assert len(_tags(items)[-1]) < 5000, "MLflow takes no longer tag"
