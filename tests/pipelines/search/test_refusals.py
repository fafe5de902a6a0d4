"""What `agmm tune` refuses before there is a run to resume."""

import pytest

from pipelines.config import parse_config
from pipelines.errors import UserError
from pipelines.search.launcher import tune_recipe
from pipelines.tracking import runs as tracking


@pytest.mark.parametrize(
    ("proxy", "tune", "grace"),
    [
        (False, {"grace": 5}, 5),
        (True, {"grace": 2, "proxy": {"epochs": 1, "share": 1.0}}, 2),
    ],
)
def test_a_scheduler_with_nothing_to_do_leaves_no_run(tiny_tree, proxy, tune, grace):
    config = parse_config(tiny_tree | {"optim": {"epochs": 4}, "tune": tune}, origin="tiny")
    with pytest.raises(UserError, match=f"grace={grace} is past"):
        tune_recipe(config, resume=False, proxy=proxy, out=None, say=lambda _: None)
    assert tracking.connect(config.tracking.uri).get_experiment_by_name("agmm") is None
