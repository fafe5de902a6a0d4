import math
import threading

import pytest

from pipelines.errors import Fenced, UserError
from pipelines.search.ledger import Ledger


def test_what_was_noted_is_there_after_a_kill(store, searched, ledger):
    for leak in (0.1, 0.2, 0.3):
        ledger.draw({"leak": leak, "method": "agmm", "time_steps": 2}, "search")
    ledger.start(1, "abc")
    ledger.record(1, {"epoch": 1, "top1": 0.5, "loss": math.nan, "done": True, "host": "here"})
    ledger.record(1, {"epoch": 2, "top1": 0.7}, ends_as="pruned", cause="asha")
    ledger.start(2)
    ledger.name_parent("parent")
    (store.root / "trials" / ".0002.json.8f3a").write_text("{")  # what a kill while writing leaves
    (store.root / "trials" / "0002.json.bak").write_text("{")

    found = Ledger.load(store, searched())
    assert repr(found.trials.values()).replace("TzInfo(0)", "datetime.timezone.utc") == repr(ledger.trials.values())
    first = found.trials[1]
    assert (first.state, first.cause, first.run_id, first.attempts) == ("pruned", "asha", "abc", 1)
    assert first.started <= first.ended
    assert first.epochs[0].keys() == {"epoch", "top1", "loss"}
    assert math.isnan(first.epochs[0]["loss"])
    assert first.epochs[1] == {"epoch": 2, "top1": 0.7}
    assert [record.number for record in found.unfinished()] == [2, 3]
    assert found.search.parent_run_id == "parent"
    assert found.trials[3].values == {"leak": 0.3, "method": "agmm", "time_steps": 2}
    assert found.draw({}, "search").number == 4


def test_an_epoch_that_is_repeated_keeps_its_first_value(ledger):
    ledger.draw({}, "search")
    ledger.start(1)
    ledger.record(1, {"epoch": 1, "top1": 0.5})
    ledger.start(1)
    record = ledger.record(1, {"epoch": 1, "top1": 0.9})
    assert [metrics["top1"] for metrics in record.epochs] == [0.5]
    assert record.attempts == 2


def test_what_has_ended_stays_as_it_was(ledger):
    ledger.draw({}, "search")
    ledger.end(1, "failed", "not finite")
    ledger.record(1, {"epoch": 1})
    ledger.start(1)
    assert ledger.end(1, "finished") == ledger.trials[1]
    assert (ledger.trials[1].state, ledger.trials[1].cause, ledger.trials[1].epochs) == ("failed", "not finite", ())


def test_stages_are_told_apart(ledger):
    for stage in ("proxy", "proxy", "full"):
        ledger.draw({}, stage)
    assert [record.number for record in ledger.of("proxy")] == [1, 2]
    assert [record.number for record in ledger.unfinished("full")] == [3]


def test_a_driver_that_was_overtaken_writes_nothing(store, searched, ledger):
    ledger.draw({}, "search")
    overtaken = False

    def check():
        if overtaken:
            raise Fenced("overtaken")

    old = Ledger.load(store, searched(), check=check)
    overtaken = True
    for write in (lambda: old.draw({}, "search"), lambda: old.start(1), lambda: old.end(1, "failed")):
        with pytest.raises(Fenced):
            write()
    assert Ledger.load(store, searched()).trials == ledger.trials == old.trials


def test_many_threads_lose_nothing(store, searched, ledger):
    def work(part):
        for step in range(10):
            number = ledger.draw({"leak": part + step / 10}, "search").number
            ledger.record(number, {"epoch": 1})

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Ledger.load(store, searched()).trials
    assert sorted(found) == list(range(1, 41))
    assert all(len(record.epochs) == 1 for record in found.values())


@pytest.mark.parametrize(
    ("key", "content", "words"),
    [
        ("trials/0002.json", "{", ["trials/0002.json", "damaged"]),
        ("trials/0002.json", '{"number": 2, "stage": "never", "values": {}}', ["trials/0002.json", "stage"]),
        ("trials/0002.json", '{"number": 1, "stage": "full", "values": {}}', ["trials/0002.json", "holds trial 1"]),
        ("trials/0002.json", None, ["trials/0002.json", "missing"]),
        ("search.json", "", ["search.json", "damaged"]),
        ("search.json", '{"format": 2, "code_version": "", "config": {}}', ["search.json", "format", "version"]),
        ("search.json", None, ["no search", "without --resume"]),
    ],
)
def test_damage_is_named(store, searched, ledger, key, content, words):
    for _ in range(3):
        ledger.draw({}, "search")
    path = store.root / key
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError) as refused:
        Ledger.load(store, searched())
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_search_begins_once(store, searched, ledger):
    with pytest.raises(UserError, match="--resume"):
        Ledger.create(store, searched())


@pytest.mark.parametrize(
    ("tune", "sections", "words"),
    [
        ({"space": {"leak": {"uniform": [0, 0.5]}}}, {}, "tune.space.leak.uniform"),
        ({"objectives": ["top1", "sops"]}, {}, "tune.objectives"),
        ({"scheduler": "none"}, {}, "tune.scheduler: asha -> none"),
        ({}, {"optim": {"epochs": 10}}, "optim.epochs: 9 -> 10"),
        ({}, {"seed": 3}, "seed: 0 -> 3"),
    ],
)
def test_another_search_is_refused_with_what_differs(store, searched, ledger, tune, sections, words):
    with pytest.raises(UserError, match=words):
        Ledger.load(store, searched(tune, **sections))


def test_the_proxy_cannot_be_added_later(store, searched, ledger):
    with pytest.raises(UserError, match="--proxy: False -> True"):
        Ledger.load(store, searched(), proxy=True)


def test_a_budget_may_be_raised(store, searched, ledger):
    more = {"trials": 40, "epochs": 99, "hours": 2, "concurrent": 2, "hang_after": 5, "retries": 3}
    Ledger.load(store, searched(more, run={"workers": 2}))
    assert Ledger.load(store, searched(more)).search.config["tune"]["trials"] == 40
