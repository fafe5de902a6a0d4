import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.benchmarks import small_data
from pipelines.checkpoints.checkpoint import sha256_of
from pipelines.config.gate import GateConfig
from pipelines.data.beton import BetonReader
from pipelines.data.manifest import ensure_verified
from pipelines.errors import ServiceError, UserError
from pipelines.promotion import promote as module
from pipelines.promotion.history import moves
from pipelines.promotion.promote import Asked, promote
from tests.pipelines.promotion.conftest import BAD, FAIR, GOOD, flip, own_digests


def _decide(shelf, number=None, gate=None, **asked):
    rules = GateConfig.model_validate(gate or {})
    return promote(shelf.client, Asked(shelf.name, number=number, gate=rules, **asked), lambda _: None)


def test_the_first_promotion_the_next_and_a_worse_one(shelf):
    first, worse, same = shelf.add(), shelf.add(FAIR), shelf.add()
    decision = _decide(shelf, first)
    assert (decision.moved, decision.before, shelf.champion) == (True, None, first)
    assert "bounds against it do not apply" in decision.notes[0]

    decision = _decide(shelf, worse)
    assert not decision.moved
    assert decision.refused[0].startswith("top1 is 0.38095, below 0.95038 (`worse_by: 0.002` against 0.95238)")
    assert shelf.champion == first
    assert shelf.told(worse)["refused.champion"]["candidate"]["count"] == 21

    decision = _decide(shelf)
    assert (decision.version, decision.before, shelf.champion) == (same, first, same)
    told = shelf.told(same)["promoted.champion"]
    assert (told["before"], told["gate"]["top1"]) == (first, {"worse_by": 0.002})
    assert told["why"].startswith("top1 0.95238 (worse_by 0.002, limit 0.95038)")
    history = moves(shelf.tags, "champion")
    assert [(move.before, move.version) for move in history] == [(None, first), (first, same)]

    decision = _decide(shelf, same)
    assert (decision.moved, decision.refused) == (False, ())
    assert "already" in decision.notes[0]


def test_another_alias_starts_anew_with_absolute_rules(shelf):
    number = shelf.add(BAD)
    assert not _decide(shelf, number, {"top1": {"at_least": 0.5}}, alias="canary").moved
    assert _decide(shelf, number, alias="canary").moved
    assert shelf.champion is None


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "MLmodel"])
def test_a_changed_byte_is_refused(shelf, name):
    first, second = shelf.crowned(), shelf.add()
    flip(shelf.file(second, name))
    decision = _decide(shelf, second)
    assert f"{name} has SHA-256" in decision.refused[0]
    assert shelf.champion == first
    assert "SHA-256" in shelf.told(second)["refused.champion"]["why"]


def test_weights_whose_card_was_made_to_match_are_refused(shelf):
    """The card names the hash of the weights; the version's tags are the record that counts."""
    first, second = shelf.crowned(), shelf.add()
    weights, card = (shelf.file(second, name) for name in ("model.safetensors", "model.json"))
    save_file({key: torch.zeros_like(value) for key, value in load_file(weights).items()}, weights)
    tree = json.loads(card.read_text()) | {"weights_sha256": sha256_of(weights)}
    card.write_text(json.dumps(tree))
    assert "SHA-256" in _decide(shelf, second).refused[0]
    assert shelf.champion == first


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_file_more_or_less_is_refused(shelf, change):
    number = shelf.add()
    weights = shelf.file(number, "model.safetensors")
    if change == "added":
        (weights.parent / "extra.py").write_text("print('hello')")
    else:
        weights.unlink()
    words = "extra.py was not there" if change == "added" else "model.safetensors is missing"
    assert words in _decide(shelf, number).refused[0]
    assert shelf.champion is None


@pytest.mark.parametrize("tag", ["agmm.sha256.model.safetensors", "agmm.data.val", "agmm.top1"])
def test_a_version_without_its_record_is_refused(shelf, tag):
    number = shelf.add()
    shelf.client.delete_model_version_tag(shelf.name, str(number), tag)
    assert f"has no {tag} among its tags" in _decide(shelf, number).refused[0]
    assert shelf.champion is None


def test_a_missing_metric_is_refused(shelf):
    first, unrecorded, without_flips = shelf.crowned(), shelf.add(top1="nan"), shelf.add(BAD)
    assert "agmm.top1='nan', which is no accuracy" in _decide(shelf, unrecorded).refused[0]
    decision = _decide(shelf, without_flips, {"top1": None, "flips": {"at_most": 1}})
    assert decision.refused == ("flips of the candidate is missing; the gate asks for it",)
    assert shelf.champion == first


def test_another_data_set_is_refused_by_both_digests(shelf, tmp_path, tiny_data):
    first, second = shelf.crowned(), shelf.add()
    other = small_data(tmp_path / "other", train=3, val=3)
    decision = _decide(shelf, second, data_uri=str(other))
    own, others = own_digests(tiny_data)["val"], own_digests(other)["val"]
    assert own in decision.refused[0]
    assert others in decision.refused[0]

    third = shelf.add(**{"data.val": "0" * 64})  # its record names other images than its data set has
    assert "0" * 64 in _decide(shelf, third).refused[0]
    assert shelf.champion == first


def test_a_current_version_of_another_data_set_is_refused_unless_the_gate_says_so(shelf):
    first, second = shelf.crowned(), shelf.add()
    shelf.client.set_model_version_tag(shelf.name, str(first), "agmm.data.val", "1" * 64)
    refused = _decide(shelf, second).refused[0]
    assert "another data set" in refused
    assert "1" * 64 in refused
    assert shelf.champion == first
    assert _decide(shelf, second, {"same_data": False}).moved


def test_images_that_a_manifest_does_not_own_up_to_are_refused(shelf, tiny_data, tmp_path):
    """Neither an edited manifest nor a stamp that spares hashing gets other images past the gate."""
    number = shelf.add()
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data, copy)
    ensure_verified(copy)
    beton = copy / "val.beton"
    state = beton.stat()
    flip(beton, int(BetonReader(beton).allocations["ptr"][0]))
    os.utime(beton, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "another data set" in _decide(shelf, number, data_uri=str(copy)).refused[0]
    os.utime(beton)
    with pytest.raises(UserError, match="damaged"):
        _decide(shelf, number, data_uri=str(copy))
    assert shelf.champion is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"number": 9}, r"shelf-\d+ has no version 9\. Known: 1"),
        ({"alias": "v2"}, "cannot be an alias"),
        ({"alias": "a b"}, "cannot be an alias"),
        ({"data_uri": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_a_users_mistake_moves_and_writes_nothing(shelf, asked, words):
    number = shelf.add()
    with pytest.raises(UserError, match=words):
        _decide(shelf, **asked)
    assert shelf.champion is None
    assert shelf.told(number) == {}


@pytest.mark.parametrize("name", ["nobody", "", "it's", "a/b"])
def test_an_unknown_model_is_named_with_those_that_are_known(shelf, name):
    shelf.add()
    with pytest.raises(UserError, match=r"Unknown model .*Known: .*tiny"):
        promote(shelf.client, Asked(name), lambda _: None)


def test_a_dry_run_moves_and_writes_nothing(shelf):
    good, bad = shelf.add(), shelf.add(BAD)
    assert _decide(shelf, good, dry_run=True).refused == ()
    assert _decide(shelf, bad, {"top1": {"at_least": 0.5}}, dry_run=True).refused
    assert shelf.champion is None
    assert shelf.told(good) == shelf.told(bad) == {}
    assert not any(key.startswith("agmm.history") for key in shelf.tags)


def test_an_alias_that_somebody_else_moves_meanwhile_stays_there(shelf, monkeypatch):
    first, second, third = shelf.crowned(), shelf.add(), shelf.add()
    judged = module._judged

    def slow(*words):
        decision = judged(*words)
        shelf.client.set_registered_model_alias(shelf.name, "champion", str(third))
        return decision

    monkeypatch.setattr(module, "_judged", slow)
    decision = _decide(shelf, second)
    assert not decision.moved
    assert f"was version {first} when this was decided, and is version {third} now" in decision.refused[0]
    assert shelf.champion == third
    assert "promoted.champion" not in shelf.told(second)


@pytest.mark.parametrize("damage", ["byte", "gone"])
def test_a_damaged_champion_does_not_block_for_ever(shelf, damage):
    first, second = shelf.crowned(), shelf.add()
    weights = shelf.file(first, "model.safetensors")
    if damage == "byte":
        flip(weights)
    else:
        shutil.rmtree(shelf.folder(first))
    refused = _decide(shelf, second).refused[0]
    assert "the current version cannot be compared with" in refused
    assert "--replace-damaged" in refused
    assert shelf.champion == first
    assert not _decide(shelf, second, {"top1": {"at_least": 0.99}}, replace_damaged=True).moved
    decision = _decide(shelf, second, replace_damaged=True)
    assert "left out" in decision.notes[0]
    assert shelf.champion == second


def test_replacing_a_damaged_champion_spares_a_sound_one(shelf):
    first, worse = shelf.crowned(), shelf.add(BAD)
    assert "below" in _decide(shelf, worse, replace_damaged=True).refused[0]
    assert shelf.champion == first


def test_files_that_are_gone_are_refused(shelf):
    number = shelf.add()
    shutil.rmtree(shelf.folder(number))
    assert "no files of it" in _decide(shelf, number).refused[0]
    assert shelf.champion is None


def test_a_store_that_is_away_is_no_refusal(shelf, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tags = shelf.models[GOOD][1]
    shelf.client.create_model_version(
        shelf.name, "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/store", tags=tags
    )
    with pytest.raises(ServiceError, match="Cannot download"):
        _decide(shelf)
    assert shelf.champion is None
