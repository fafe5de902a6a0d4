"""Files for `ray up`: Ray's own launcher takes them, and nothing is open."""

import shlex

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.errors import UserError
from cluster.manifests import renderers
from cluster.manifests.settings import ClusterSettings
from tests.cluster.manifests.helpers import FULL, rendered, settings

LOCAL = {"rayup": {"provider": "local", "hosts": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}}


@pytest.mark.parametrize("tree", [{}, FULL, LOCAL], ids=["plain", "full", "local"])
def test_rays_launcher_takes_it(tree):
    (config,) = rendered("rayup", settings(**tree))
    validate_config(prepare_config(config))


def test_it_has_as_many_machines_as_the_settings_say():
    (config,) = rendered("rayup", settings(workers=[2, 7]))
    worker = prepare_config(config)["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (2, 7, 7)


def test_aws_without_a_security_group_is_refused():
    with pytest.raises(UserError, match="opens SSH to the world"):
        renderers.render("rayup", ClusterSettings())


def test_only_ssh_is_a_way_in_and_ray_asks_for_a_token():
    (config,) = rendered("rayup", settings())
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-0123456789abcdef0"]
    assert "security_group" not in config["provider"]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert config["setup_commands"][0].startswith("chmod 600 ~/.ray/auth_token")
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--node-ip-address=" in head


def test_workers_alone_are_on_spot_machines():
    (config,) = rendered("rayup", settings(preemptible=True))
    kinds = config["available_node_types"]
    assert kinds["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]


def test_the_training_is_told_in_words_for_a_shell():
    text = renderers.render("rayup", settings(job={"overrides": ["data.dataset=a'b; rm -rf /"]}))
    (line,) = [line for line in text.splitlines() if line.startswith("# RAY_AUTH_MODE=token ray exec")]
    words = shlex.split(shlex.split(line.removeprefix("# "))[-1])
    assert words[-1] == "data.dataset=a'b; rm -rf /"
