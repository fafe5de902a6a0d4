"""The Grafana dashboard asks for metrics that runs export, by the names that Prometheus has of them, and for all."""

import json
import re

import pytest

from cluster.dashboard import dashboard
from pipelines import cli
from pipelines.on_ray.metrics import METRICS, RUN_TAGS, exported_name

TREE = json.loads(dashboard())
TARGETS = [target for panel in TREE["panels"] for target in panel["targets"]]
KINDS = {exported_name(name): kind for name, kind in METRICS.items()}


def _metrics_in(expression):
    return re.findall(r"\bray_\w+", expression)


def test_every_expression_is_of_a_metric_that_is_exported_and_each_has_a_panel():
    named = [name for target in TARGETS for name in _metrics_in(target["expr"])]
    assert all(_metrics_in(target["expr"]) for target in TARGETS)
    assert set(named) == set(KINDS)
    for variable in TREE["templating"]["list"]:
        assert set(_metrics_in(str(variable["query"]))) <= set(KINDS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["expr"])
def test_labels_are_tags_of_the_metric(target):
    (name,) = _metrics_in(target["expr"])
    known = {*RUN_TAGS, *KINDS[name].tags}
    matched = re.findall(r"(\w+)=~?\"", target["expr"])
    grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
    shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
    assert {*matched, *(word for words in grouped for word in words.split(", ")), *shown} <= known
    if grouped:
        assert set(shown) <= set(grouped[0].split(", ")), "a label that the sum has dropped"
    assert ("rate(" in target["expr"]) == KINDS[name].grows


def test_it_is_a_dashboard_that_grafana_takes():
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= TREE.keys()
    assert len({panel["id"] for panel in TREE["panels"]}) == len(TREE["panels"])
    places = [panel["gridPos"] for panel in TREE["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    variables = {variable["name"] for variable in TREE["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(TREE))) - {"__rate_interval", "__all"}
    assert used == variables


def test_the_command_writes_it(tmp_path, capsys):
    for words in ([], ["--out", str(tmp_path / "agmm.json")]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["cluster", "dashboard", *words])
        assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "agmm.json").read_text()) == TREE
    with pytest.raises(SystemExit) as ended:
        cli.main(["cluster", "dashboard", "--out", str(tmp_path / "no" / "agmm.json")])
    assert ended.value.code == 2
    assert "Cannot write" in capsys.readouterr().err
