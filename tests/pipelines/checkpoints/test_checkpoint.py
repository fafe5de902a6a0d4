import os
import tempfile

import pytest
import torch

from agmm.metrics.flips import pack_signs, signs
from agmm.optim import make_optimizer
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.errors import ServiceError
from pipelines.network import build_network
from pipelines.storage import open_store

FILES = ["model.safetensors", "optimizer.safetensors", "signs.safetensors", "state.json", "manifest.json", "COMMITTED"]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


@pytest.fixture
def first(store):
    """The run's first attempt."""
    return claim(store, "a driver")


@pytest.fixture
def trained(tiny_config):
    """A network and optimiser with momentum."""
    network = build_network(tiny_config.model)
    optimizer = make_optimizer("sgd", network, lr=0.1, momentum=0.9, weight_decay=1e-4)
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    return network, optimizer


def _checkpoint(trained, step=7):
    network, optimizer = trained
    return Checkpoint(
        position=Position(epoch=1, offset=3, step=step),
        model=checkpoints.model_tensors(network),
        optimizer=checkpoints.optimizer_tensors(optimizer),
        signs=pack_signs(signs(network)),
        config={"name": "tiny"},
        metrics={"top1": 0.5},
        code_version="1",
    )


def test_round_trip(store, first, trained, tiny_config):
    saved = _checkpoint(trained)
    name = checkpoints.save(first, saved)
    loaded = checkpoints.load(store, name)
    for part in ("model", "optimizer", "signs"):
        before, after = getattr(saved, part), getattr(loaded, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert (loaded.position, loaded.config, loaded.metrics) == (saved.position, saved.config, saved.metrics)

    twin = build_network(tiny_config.model)
    optimizer = make_optimizer("sgd", twin, lr=0.1, momentum=0.9, weight_decay=1e-4)
    checkpoints.restore_optimizer(optimizer, loaded.optimizer)
    restored = checkpoints.optimizer_tensors(optimizer)
    assert restored.keys() == saved.optimizer.keys()
    assert all(torch.equal(restored[key], saved.optimizer[key]) for key in restored)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused_and_the_one_before_is_used(store, first, trained, tmp_path, file, damage):
    checkpoints.save(first, _checkpoint(trained, 7))
    checkpoints.save(first, _checkpoint(trained, 8))
    path = tmp_path / "run" / "attempt-0001-step-000000008" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if (file, damage) != ("COMMITTED", "remove"):
        with pytest.raises(ServiceError, match="attempt-0001-step-000000008"):
            checkpoints.load(store, "attempt-0001-step-000000008")
    said = []
    assert checkpoints.newest_usable(store, said.append) == "attempt-0001-step-000000007"
    assert len(said) == (0 if (file, damage) == ("COMMITTED", "remove") else 1)


def test_an_upload_that_breaks_off_is_never_read(store, first, trained, monkeypatch):
    checkpoints.save(first, _checkpoint(trained, 7))
    real_put = store.put

    def put(source, key):
        if key.endswith("manifest.json"):
            raise ServiceError("gone")
        real_put(source, key)

    monkeypatch.setattr(store, "put", put)
    with pytest.raises(ServiceError, match="gone"):
        checkpoints.save(first, _checkpoint(trained, 8))
    assert checkpoints.committed(store) == ["attempt-0001-step-000000007"]


def test_pruning_keeps_the_newest(store, first, trained):
    for step in (6, 7, 8, 9):
        checkpoints.save(first, _checkpoint(trained, step))
    store.delete(["attempt-0001-step-000000006/COMMITTED"])  # as an upload that broke off
    checkpoints.prune(store, 2, "attempt-0001-step-000000009")
    assert checkpoints.committed(store) == ["attempt-0001-step-000000008", "attempt-0001-step-000000009"]
    assert not store.keys("attempt-0001-step-000000006")
    assert not store.keys("attempt-0001-step-000000007")


def test_no_checkpoint_is_no_checkpoint(store):
    assert checkpoints.newest_usable(store, print) == ""


def test_what_killed_processes_left_on_the_scratch_disk_is_swept_after_a_day(
    store, first, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new = tmp_path / "agmm-checkpoint-old", tmp_path / "agmm-checkpoint-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    os.utime(old, (0, 0))
    checkpoints.save(first, _checkpoint(trained))
    assert not old.exists()
    assert new.exists()


def test_a_store_that_does_not_answer_is_not_a_store_without_checkpoints(store, first, trained, monkeypatch):
    """A run that began again from nothing would soon have removed what it had."""
    checkpoints.save(first, _checkpoint(trained))

    def away(*_):
        raise ServiceError("no route")

    monkeypatch.setattr(store, "read", away)
    with pytest.raises(ServiceError, match="no route"):
        checkpoints.newest_usable(store, print)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(store, first, trained, tmp_path):
    name = checkpoints.save(first, _checkpoint(trained))
    (tmp_path / "run" / name / "state.json").write_text("{}")
    with pytest.raises(ServiceError, match="None of the 1 committed checkpoints"):
        checkpoints.newest_usable(store, lambda _: None)
