import resource

import pytest

from pipelines.tracking.spool import Mark, Spool

ROWS = [{"metrics": {"a": float(step)}, "step": step, "time": 1} for step in range(3)]


@pytest.fixture
def spool():
    return Spool("run")


def _read(spool, start=0):
    return [entry.operation for entry in spool.entries(start) if entry.operation]


def test_what_was_appended_is_read_in_order(spool):
    for row in ROWS:
        spool.append(row)
    assert _read(spool) == ROWS
    assert _read(spool, spool.entries(0)[0].end) == ROWS[1:]


def test_a_row_cut_anywhere_costs_itself_only(spool):
    """What a crash leaves of a line is never read, and the next line does not grow out of it."""
    spool.append(ROWS[0])
    first = spool.size()
    spool.append(ROWS[1])
    whole = spool.path.read_bytes()
    for size in range(first, len(whole)):
        spool.path.write_bytes(whole[:size])
        assert _read(spool) == ROWS[:1]
        spool.append(ROWS[2])
        survives = size == len(whole) - 1  # only the line's end was missing
        assert _read(spool) == [ROWS[0], *([ROWS[1]] if survives else []), ROWS[2]]


def test_a_full_disk_costs_the_row_only(spool):
    spool.append(ROWS[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size() + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            spool.append(ROWS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.append(ROWS[2])
    assert _read(spool) == [ROWS[0], ROWS[2]]


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1]\n", b"null\n", b"\n", b"\0\0\0\n"])
def test_a_line_that_is_no_operation_is_passed_over(spool, line):
    spool.append(ROWS[0])
    with spool.path.open("ab") as file:
        file.write(line)
    spool.append(ROWS[1])
    assert _read(spool) == ROWS[:2]
    assert spool.entries(0)[-1].end == spool.size()


def test_a_row_longer_than_one_read_is_read_whole(spool):
    long = {"tag": "key", "value": "x" * (1 << 21)}
    spool.append(long)
    spool.append(ROWS[0])
    assert _read(spool) == [long]
    assert [entry.operation for entry in spool.waiting()] == [long, ROWS[0]]


def test_the_mark_says_what_waits(spool):
    assert spool.mark() == Mark()
    for row in ROWS:
        spool.append(row)
    spool.acknowledge(Mark(spool.entries(0)[1].end, "s"))
    assert [entry.operation for entry in spool.waiting()] == ROWS[2:]
    spool.remove()
    assert (spool.size(), spool.mark()) == (0, Mark())


def test_a_mark_that_is_not_this_journals_is_not_believed(spool):
    spool.append(ROWS[0])
    spool.acknowledge(Mark(spool.size() + 1, "s"))
    assert spool.mark() == Mark()
