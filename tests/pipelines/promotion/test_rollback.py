import pytest

from pipelines.config.gate import GateConfig
from pipelines.errors import Refused, UserError
from pipelines.promotion.history import Move, move_alias, moves
from pipelines.promotion.promote import Asked, promote
from pipelines.promotion.rollback import rollback
from tests.pipelines.promotion.conftest import flip


def _move(shelf, number):
    """A promotion without its gate, which other tests go through."""
    move = Move(what="promoted", version=number, before=shelf.champion, time="2026-01-01T00:00:00+00:00")
    move_alias(shelf.client, shelf.name, "champion", move, {})
    return number


def _back(shelf, **asked):
    return rollback(shelf.client, shelf.name, "champion", **asked)


def test_a_rollback_goes_back_one_version_at_a_time_and_says_why(shelf):
    first, second, third = (_move(shelf, shelf.add()) for _ in range(3))
    assert _back(shelf, dry_run=True).version == second
    assert shelf.champion == third
    back = _back(shelf, why="too slow")
    assert (back.version, back.before, back.moved, shelf.champion) == (second, third, True, second)
    assert shelf.told(third)["rolled_back.champion"]["why"] == "too slow"
    assert _back(shelf).version == shelf.champion == first
    with pytest.raises(UserError, match="had none before it"):
        _back(shelf)
    assert [move.what for move in moves(shelf.tags, "champion")] == ["promoted"] * 3 + ["rolled_back"] * 2


def test_a_version_that_was_rolled_back_is_noted_when_it_is_promoted_again(shelf):
    _move(shelf, shelf.add())
    second = _move(shelf, shelf.add())
    _back(shelf, why="too slow")
    decision = promote(shelf.client, Asked(shelf.name, number=second, gate=GateConfig()), lambda _: None)
    assert decision.moved
    assert "was rolled back" in decision.notes[0]
    assert "too slow" in decision.notes[0]


def test_a_damaged_version_is_not_gone_back_to(shelf):
    first, second = _move(shelf, shelf.add()), _move(shelf, shelf.add())
    flip(shelf.file(first, "model.safetensors"))
    with pytest.raises(Refused, match=r"model\.safetensors has SHA-256"):
        _back(shelf)
    assert shelf.champion == second


def test_deleted_versions_are_passed_over(shelf):
    first, second = _move(shelf, shelf.add()), _move(shelf, shelf.add())
    _move(shelf, shelf.add())
    shelf.client.delete_model_version(shelf.name, str(second))
    back = _back(shelf)
    assert (back.version, back.deleted, shelf.champion) == (first, (second,), first)


def test_nothing_to_go_back_to_is_a_users_mistake(shelf):
    number = shelf.crowned()
    for name, words in ((shelf.name, "Nothing to roll back to"), ("nobody", "Unknown model 'nobody'")):
        with pytest.raises(UserError, match=words):
            rollback(shelf.client, name, "champion")
    assert shelf.champion == number


def test_an_alias_that_moved_meanwhile_is_left_there(shelf):
    first, second = shelf.crowned(), shelf.add()
    move = Move(what="promoted", version=second, before=None, time="")
    with pytest.raises(Refused, match="somebody else has moved it"):
        move_alias(shelf.client, shelf.name, "champion", move, {})
    assert shelf.champion == first
    assert moves(shelf.tags, "champion") == []
