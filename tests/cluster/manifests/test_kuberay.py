"""Manifests for KubeRay: of its types, closed off, without secrets, and elastic."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from cluster.manifests import renderers
from cluster.manifests.kuberay import RAY_VERSION
from cluster.manifests.settings import ClusterSettings
from tests.cluster.manifests.helpers import FULL, rendered, settings
from tests.cluster.manifests.kubernetes_types import RayCluster, RayJob

ROOT = Path(__file__).parent.parent.parent.parent


def job(chosen):
    """The RayJob, as its type."""
    return RayJob.model_validate(rendered("kuberay", chosen)[1])


@pytest.mark.parametrize("tree", [{}, FULL, {"workers": 3}], ids=["plain", "full", "fixed"])
def test_a_job_and_a_cluster_are_of_kuberays_types_and_the_same_cluster(tree):
    chosen = settings(**tree)
    standing = chosen.model_copy(update={"kuberay": chosen.kuberay.model_copy(update={"kind": "cluster"})})
    cluster = RayCluster.model_validate(rendered("kuberay", standing)[1])
    assert job(chosen).spec.rayClusterSpec == cluster.spec


def test_ray_asks_for_a_token_and_is_the_version_of_the_pins():
    assert job(settings()).spec.rayClusterSpec.authOptions.mode == "token"
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={RAY_VERSION}\n" in pins


def test_as_many_nodes_as_the_run_has_workers_for():
    spec = job(settings(workers=[2, 5])).spec
    group = spec.rayClusterSpec.workerGroupSpecs[0]
    assert (group.replicas, group.minReplicas, group.maxReplicas) == (2, 2, 5)
    assert spec.rayClusterSpec.enableInTreeAutoscaling
    assert "run.workers=[2, 5]" in shlex.split(spec.entrypoint)
    fixed = job(settings(workers=3)).spec
    assert not fixed.rayClusterSpec.enableInTreeAutoscaling
    assert "run.workers=3" in shlex.split(fixed.entrypoint)


def test_a_node_stays_until_the_run_has_saved():
    chosen = settings(grace=120)
    for group in (pods := job(chosen).spec.rayClusterSpec).workerGroupSpecs:
        environment = {each.name: each.value for each in group.template.spec.containers[0].env}
        assert int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) == 120
        assert group.template.spec.terminationGracePeriodSeconds > 120
    head = pods.headGroupSpec.template.spec
    waits = {each.name: each.value for each in head.containers[0].env}["RAY_JOB_STOP_WAIT_TIME_S"]
    assert 120 < int(waits) < head.terminationGracePeriodSeconds


def test_no_pod_talks_to_the_api_server_but_the_autoscalers():
    for workers, wanted in ((2, False), ([1, 2], True)):
        spec = job(settings(workers=workers)).spec
        assert spec.rayClusterSpec.headGroupSpec.template.spec.automountServiceAccountToken is wanted
        assert not spec.rayClusterSpec.workerGroupSpecs[0].template.spec.automountServiceAccountToken
        assert not spec.submitterPodTemplate.spec.automountServiceAccountToken


def test_all_pods_are_in_the_policy_and_only_named_namespaces_come_in():
    chosen = ClusterSettings.model_validate(FULL)
    policy, _ = rendered("kuberay", chosen)
    selected = policy["spec"]["podSelector"]["matchLabels"]
    spec = job(chosen).spec
    templates = [spec.submitterPodTemplate, spec.rayClusterSpec.headGroupSpec.template]
    for template in [*templates, *(group.template for group in spec.rayClusterSpec.workerGroupSpecs)]:
        assert selected.items() <= template.metadata.labels.items()
    own, dashboard, metrics = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": selected}}]}
    assert _entry(dashboard) == ({"kuberay-system", "desks"}, {8265})
    assert _entry(metrics) == ({"monitoring"}, {8080})


def _entry(rule):
    names = {each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for each in rule["from"]}
    return names, {port["port"] for port in rule["ports"]}


def test_without_namespaces_nobody_comes_in():
    policy, _ = rendered("kuberay", settings(kuberay={"operators": [], "monitors": []}))
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert [list(rule) for rule in policy["spec"]["ingress"]] == [["from"]]
    assert all(rule["from"] for rule in policy["spec"]["ingress"])  # an empty list would be everybody


def test_credentials_come_from_secrets_by_name():
    for group in job(settings()).spec.rayClusterSpec.workerGroupSpecs:
        secret = {each.name: each for each in group.template.spec.containers[0].env if each.valueFrom}
        assert set(secret) == {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
        }
        assert all(each.value is None for each in secret.values())
    role = job(settings(secrets={"s3": None})).spec.rayClusterSpec.headGroupSpec.template.spec.containers[0]
    assert not [each for each in role.env if each.name.startswith("AWS_") and each.valueFrom]


def test_workers_go_where_the_settings_say():
    spec = job(ClusterSettings.model_validate(FULL)).spec.rayClusterSpec
    worker, head = spec.workerGroupSpecs[0].template.spec, spec.headGroupSpec.template.spec
    assert worker.nodeSelector == {"cloud.google.com/gke-spot": "true"}
    assert [each.key for each in worker.tolerations] == ["nvidia.com/gpu", "spot"]
    assert (head.nodeSelector, head.tolerations) == ({}, [])
    assert worker.containers[0].resources.limits == {"cpu": "32", "memory": "240Gi", "nvidia.com/gpu": "4"}
    volumes = {volume["name"]: volume for volume in worker.volumes}
    assert volumes["cache"]["hostPath"]["path"] == "/scratch/agmm"
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}


def test_an_override_reaches_the_training_as_it_was_written():
    nasty = "data.dataset=a\"b'c $(touch x) `id` ; rm -rf / && echo > y"
    entrypoint = job(settings(job={"overrides": [nasty]})).spec.entrypoint
    assert shlex.split(entrypoint)[-1] == nasty


def test_what_kuberay_puts_between_double_quotes_is_harmless():
    metadata = job(ClusterSettings.model_validate(FULL)).spec.metadata
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", value) for value in metadata.values())


def test_yaml_has_no_references():
    assert not re.search(r"[&*]id\d+", renderers.render("kuberay", settings()))


def test_the_package_carries_what_it_renders_from():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "manifests/*.in" in data["cluster"]
