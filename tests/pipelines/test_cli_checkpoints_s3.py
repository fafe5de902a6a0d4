"""`agmm checkpoints` and `agmm bench checkpoint` against a real S3 server."""

import json

import pytest
import torch

from cluster.environment import CONFLICTING, client_environment
from pipelines import cli
from pipelines.benchmarks.checkpoint import Size, bench
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position, save
from pipelines.storage import open_store
from tests.s3_server import s3_server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def uri(services, monkeypatch):
    """A run with one checkpoint."""
    for name in CONFLICTING:
        monkeypatch.delenv(name, raising=False)
    for name, value in client_environment(services).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    address = "s3://agmm/checkpoints/run"
    tensors = {"weight": torch.arange(3000.0)}
    save(claim(open_store(address), "x"), Checkpoint(Position(step=5), tensors, tensors, tensors, config={}))
    return address


def _run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["checkpoints", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return ended.value.code, shown.out, shown.err


def test_listed_verified_and_refused(uri, capsys, tmp_path, monkeypatch):
    for address in (uri, "s3://agmm/checkpoints", "s3://agmm/checkpoints/"):
        code, out, _ = _run(capsys, "list", address, "--json")
        assert code == 0
        (row,) = json.loads(out)["checkpoints"]
        assert (row["step"], row["state"]) == (5, "committed")
        assert row["bytes"] > 36_000
    name = "attempt-0001-step-000000005"
    assert _run(capsys, "verify", f"{uri}/{name}")[:2] == (0, f"{name}: whole\n")

    store, damaged = open_store(uri), tmp_path / "damaged"
    damaged.write_bytes(store.read(f"{name}/model.safetensors")[:-1])
    store.put(damaged, f"{name}/model.safetensors")
    store.delete([f"{name}/signs.safetensors"])
    code, out, _ = _run(capsys, "verify", uri)
    assert code == 1
    assert out.startswith(f"{name}: damaged; ")
    assert f"{name}/model.safetensors" in out
    assert f"{name}/signs.safetensors" in out

    for address in ("s3://agmm/nothing", "s3://agmm/nothing/attempt-0001-step-000000001"):
        assert _run(capsys, "verify", address)[0] == 2
    code, _, err = _run(capsys, "list", "s3://no-such-bucket/run")
    assert code == 2
    assert "the bucket does not exist" in err
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    code, _, err = _run(capsys, "list", uri)
    assert code == 1
    assert "does not answer" in err


def test_the_cost_of_a_checkpoint_in_s3(uri):
    result = bench("s3://agmm/bench", 2, lambda _: None, Size(width=4, classes=3))
    assert result["store"].startswith("s3://agmm/bench/bench-")
    assert open_store("s3://agmm/bench").keys("") == []
