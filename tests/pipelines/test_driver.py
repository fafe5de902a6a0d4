"""What is refused before a run is opened or a worker started."""

import mlflow
import pytest
import yaml

from pipelines import cli


@pytest.fixture
def train(tiny_tree, tmp_path, capsys):
    """Exit code and message of `agmm train` with changes, which must not get as far as a run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))

    def call(*changes):
        words = [word for change in changes for word in ("--set", change)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", str(path), *words])
        assert not _runs(tmp_path)
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        return ended.value.code, shown

    return call


def _runs(tmp_path):
    if not (tmp_path / "mlflow.db").exists():
        return []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.batch_size=100", "48 training images do not fill one batch"),
        ("data.share=0.1", "data.share=0.1 of 48 training images is 5, which do not fill one batch of 12"),
        ("data.resolution=20", "crop=pad needs images of"),
        ("run.workers=[1,4] data.augment.mix.mixup=0.2", "got 12 for 4 workers"),
        ("data.dataset=other", "other"),
        ("model.num_classes=4", "4"),
        ("model.arch=resnet20", "Unknown model 'resnet20'. Known: agmm_resnet18, agmm_resnet19"),
        ("model.stem=huge", "'imagenet' or 'cifar'"),
        ("model.method=bnn", "'agmm', 'vanilla', 'full_precision', 'q_snn'"),
        ("model.arch=agmm_vggsnn", "VGGSNN has no stem to choose; got 'cifar'"),
        ("model.method=vanilla model.gate.kind=constant", "gate belongs to method agmm; vanilla has none"),
        ("model.in_chans=2", "model.in_chans"),
        ("model.neuron.kind=plif model.neuron.leak=1", "neither included"),
        ("model.neuron.kind=relu", "Set model.time_steps=1"),
        ("model.neuron.kind=rate_if", "Train relu"),
        ("optim.optimizer=bop model.method=q_snn", "Set model.method to agmm, vanilla"),
        ("loss.distill.teacher=resnet18", "either pretrained=true or the path"),
        ("loss.distill.teacher=resnet18 loss.distill.weights=no.safetensors", "Cannot load teacher resnet18"),
        ("data.uri=ftp://host/data", "must be a folder, s3://bucket/prefix"),
        ("tracking.uri=foo://x", "Allowed: http"),
        ("tracking.uri=http://someone:planted@127.0.0.1:1", "MLFLOW_TRACKING_PASSWORD"),
        ("checkpoint.uri=s3://", "names no bucket"),
        ("checkpoint.uri=ftp://x", "s3:// or a folder"),
    ],
)
def test_a_mistake_is_refused_early(train, change, words):
    code, shown = train(*change.split())
    assert code == 2
    assert words in shown
    assert "planted" not in shown


def test_a_ray_head_that_does_not_answer_is_named_at_once(train, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, shown = train()
    assert code == 1
    assert "No Ray head answers at RAY_ADDRESS=127.0.0.1:9" in shown


def test_a_store_that_cannot_be_written_is_named_at_once(train, tmp_path):
    (tmp_path / "file").write_text("")
    code, shown = train(f"checkpoint.uri={tmp_path / 'file' / 'below'}")
    assert code == 1
    assert "Cannot write" in shown
