import pytest

from pipelines.errors import Refused
from pipelines.promotion.history import HISTORY_TAG, Move, _shortened, earlier, moves


def _moves(*steps):
    """A step is a version to promote, or a negative one to go back to."""
    made, at = [], None
    for step in steps:
        what = "promoted" if step > 0 else "rolled_back"
        made.append(Move(what=what, version=abs(step), before=at, time="2026-01-01T00:00:00+00:00"))
        at = abs(step)
    return made


@pytest.mark.parametrize(
    ("steps", "current", "expected"),
    [
        ((), None, []),
        ((1,), 1, []),
        ((1, 2, 3), 3, [2, 1]),
        ((1, 2, 3, -2), 2, [1]),  # and not 3 again
        ((1, 2, 3, -2, -1), 1, []),
        ((1, 2, 3, -2, 4), 4, [2, 1]),
        ((1, 2, 1), 1, [2]),
        ((1, 2, 3, 2, 4, -2), 2, [3, 1]),
        ((1, 2), 7, [2, 1]),  # moved by hand
        ((1, 2), None, [2, 1]),  # the alias was deleted
    ],
)
def test_what_an_alias_had_before(steps, current, expected):
    assert earlier(_moves(*steps), current) == expected


def test_where_an_alias_was_before_the_first_record_counts():
    first = Move(what="promoted", version=5, before=3, time="")
    assert earlier([first], 5) == [3]


def test_a_long_history_loses_its_oldest_moves_and_fits_into_a_database():
    history = [move.model_copy(update={"why": "because " * 100}) for move in _moves(*range(1, 60))]
    text = _shortened(history)
    assert len(text) <= 4500
    kept = moves({f"{HISTORY_TAG}champion": text}, "champion")
    assert kept[-1].version == 59
    assert [move.version for move in kept] == list(range(60 - len(kept), 60))
    assert len(kept) > 5


def test_an_unreadable_history_is_refused():
    with pytest.raises(Refused, match=r"agmm\.history\.champion"):
        moves({f"{HISTORY_TAG}champion": "[{]"}, "champion")
