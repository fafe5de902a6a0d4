"""What settings can say, and how they refuse."""

import json

import pytest
import yaml
from pydantic import ValidationError

from cluster.manifests.fields import Section
from cluster.manifests.settings import ClusterSettings
from cluster.manifests.training import train_command
from tests.cluster.manifests.helpers import FULL, settings

HOSTILE = ['a"; rm -rf /', "a\nb", "$(touch pwned)", "`id`", "a b", "-x", "a'b", "é", "a\x00", "a\n", ""]
PLACES = [
    "name",
    "image",
    "job.recipe",
    "cache.path",
    "cache.limit",
    "services.store",
    "services.mlflow",
    "services.s3_endpoint",
    "services.s3_region",
    "secrets.s3",
    "secrets.file",
    "kuberay.namespace",
    "kuberay.priority_class",
    "kuberay.pull_secret",
    "rayup.region",
    "rayup.worker_type",
    "rayup.ssh_user",
    "slurm.partition",
    "slurm.account",
    "slurm.folder",
    "slurm.environment",
    "slurm.interface",
]


def tree(place, value):
    """A tree with one value in it."""
    for part in reversed(place.split(".")):
        value = {part: value}
    return value


def test_settings_come_back_as_they_were():
    full = ClusterSettings.model_validate(FULL)
    as_yaml = yaml.safe_load(yaml.safe_dump(full.model_dump(mode="json")))
    assert ClusterSettings.model_validate(as_yaml) == full
    assert ClusterSettings.model_validate_json(full.model_dump_json()) == full


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        settings().name = "other"


def _sections(kind):
    yield kind
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _sections(field.annotation)


@pytest.mark.parametrize("section", list(_sections(ClusterSettings)), ids=lambda each: each.__name__)
def test_every_section_refuses_what_it_does_not_know(section):
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_a_shell_would_read_otherwise_is_refused(place):
    for value in HOSTILE:
        with pytest.raises(ValidationError):
            ClusterSettings.model_validate(tree(place, value))


@pytest.mark.parametrize("path", ["relative", "/a/../../etc", "~/a"])
def test_a_folder_is_absolute_and_stays_where_it_is(path):
    with pytest.raises(ValidationError, match="absolute path"):
        settings(cache={"path": path})


@pytest.mark.parametrize("value", ["a=b\nc", "a=\x1b[0m", ""])
def test_an_override_is_one_line(value):
    with pytest.raises(ValidationError):
        settings(job={"overrides": [value]})


@pytest.mark.parametrize("address", ["https://me:secret@mlflow.example", "https://me@mlflow.example"])
def test_an_address_holds_no_credentials(address):
    with pytest.raises(ValidationError, match="no user and no password"):
        settings(services={"mlflow": address})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "1 <= min <= max"),
        ({"workers": [3, 2]}, "1 <= min <= max"),
        ({"workers": True}, "1 <= min <= max"),
        ({"processes": 5}, "worker.cpus=4"),
        ({"worker": {"gpus": 2, "cpus": 4}}, "set processes=2"),
        ({"worker": {"memory": 4, "shm": 4}}, "part of memory"),
        ({"job": {"overrides": ["run.workers=3"]}}, "follows from the manifest's workers"),
        ({"job": {"overrides": ["lr"]}}, "a.b=value"),
        ({"kuberay": {"tolerations": [{"key": "a", "operator": "Equal"}]}}, "needs a value"),
        ({"kuberay": {"user": 0}}, "greater than or equal to 1"),
        ({"rayup": {"security_groups": ["0.0.0.0/0"]}}, "security group's id"),
        ({"rayup": {"provider": "local", "hosts": ["one"]}}, "the head's address"),
    ],
)
def test_a_refusal_says_what_is_wrong(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_the_recipe_gets_what_follows_from_the_cluster():
    command = train_command(ClusterSettings.model_validate(FULL))
    for words in ("name=night-run", "'run.workers=[8, 24]'", "run.cpus_per_worker=8", "checkpoint.grace=45"):
        assert f"--set {words}" in command
    assert "--resume --or-start" in command


def test_the_schema_is_for_editors():
    schema = json.loads(json.dumps(ClusterSettings.model_json_schema()))
    assert set(schema["properties"]) == set(ClusterSettings.model_fields)
    assert "required" not in schema
