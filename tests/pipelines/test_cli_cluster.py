"""`agmm cluster render`: settings from a file and from --set, and what is said of wrong ones."""

import json

import pytest
import yaml

from pipelines import cli


def agmm(capsys, *words):
    """Run a command: its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["cluster", *words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_set_is_the_last_word_over_a_file(capsys, tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("name: from-file\nworkers: 3\nkuberay: {namespace: research}\n")
    code, out, _ = agmm(capsys, "render", "--to", "kuberay", "--settings", str(file), "--set", "workers=[1, 4]")
    assert code == 0
    job = list(yaml.safe_load_all(out))[1]
    assert (job["metadata"]["name"], job["metadata"]["namespace"]) == ("from-file", "research")
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == 4


def test_a_manifest_goes_to_a_file(capsys, tmp_path):
    out_file = tmp_path / "job.sh"
    code, out, err = agmm(capsys, "render", "--to", "slurm", "--out", str(out_file))
    assert (code, out) == (0, "")
    assert str(out_file) in err
    assert out_file.read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "nomad"], "kuberay, rayup, slurm"),
        (["--to", "slurm", "--set", "slurm.partitoin=a"], "Known here: partition, account"),
        (["--to", "slurm", "--set", "kuberay.tolerations=[{key: a, effekt: b}]"], "Known here: key, operator"),
        (["--to", "slurm", "--set", "name=A b"], "name: "),
        (["--to", "slurm", "--set", "name"], "a.b=value"),
        (["--to", "slurm", "--set", "job.recipe=imagenet"], "Unknown recipe 'imagenet'"),
        (["--to", "slurm", "--set", "job.overrides=[optim.rl=1]"], "rl: unknown key"),
        (["--to", "kuberay", "--set", "workers=100000"], "batch_size"),
        (["--to", "slurm", "--settings", "none.yaml"], "Cannot read settings none.yaml"),
        (["--to", "rayup"], "rayup.security_groups"),
    ],
)
def test_a_mistake_is_told_in_a_few_lines(capsys, words, said):
    code, out, err = agmm(capsys, "render", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "name: a\nname: b\n", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(capsys, tmp_path, text):
    file = tmp_path / "site.yaml"
    file.write_text(text)
    code, _, err = agmm(capsys, "render", "--to", "slurm", "--settings", str(file))
    assert code == 2
    assert str(file) in err


def test_no_secret_of_this_machine_gets_into_a_manifest(capsys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "s3cr3t-of-this-machine")
    for target in ("kuberay", "rayup", "slurm"):
        code, out, err = agmm(capsys, "render", "--to", target, "--set", "rayup.security_groups=[sg-1a]")
        assert code == 0
        assert "s3cr3t" not in out + err


def test_the_schema_is_json(capsys):
    code, out, _ = agmm(capsys, "schema")
    assert code == 0
    assert "kuberay" in json.loads(out)["properties"]


def test_or_start_needs_resume(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "fashion_mnist_resnet18", "--or-start"])
    assert ended.value.code == 2
    assert "--resume" in capsys.readouterr().err
