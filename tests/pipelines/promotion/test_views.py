import json

import pytest

from pipelines import cli
from pipelines.errors import UserError
from pipelines.promotion import views
from tests.pipelines.promotion.conftest import FAIR, flip


@pytest.fixture
def agmm(shelf, capsys):
    """Exit code, stdout and stderr of a command."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["models", *words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        lines = [] if "--json" in words else shown.out.partition("\n# ")[0].splitlines()  # a card is shown as it is
        assert all(len(line) <= 100 or " /" in line for line in lines)  # but for those that name a folder
        return ended.value.code, shown.out, shown.err

    return run


def test_promote_and_rollback_from_the_command_line(shelf, agmm, tmp_path):
    name = shelf.name
    first, worse = shelf.add(), shelf.add(FAIR)
    code, out, err = agmm("promote", name, "--version", str(first))
    assert (code, shelf.champion) == (0, first)
    assert out.splitlines()[-1] == f"{name}@champion is now version {first}, was not set"
    assert "do not apply" in err

    code, out, err = agmm("promote", name)
    assert (code, shelf.champion) == (1, first)
    assert "worse_by 0.002  0.95038  0.38095    0.95238    no" in out
    assert "top1 0.3810 ± 0.1060 against 0.9524 ± 0.0465: -0.5714 ± 0.1157" in out
    assert "Refused: top1 is 0.38095" in err

    gate = tmp_path / "gate.yaml"
    gate.write_text("top1: {at_least: 0.3}\nfiring: {at_least: 0.01, at_most: 0.9}\n")
    code, out, _ = agmm("promote", name, "--gate", str(gate), "--json")
    assert (code, shelf.champion) == (0, worse)
    told = json.loads(out)
    assert (told["moved"], told["version"], told["before"], told["model"]) == (
        True,
        worse,
        first,
        f"models:/{name}@champion",
    )
    assert {check["metric"] for check in told["checks"]} == {"top1", "firing"}

    code, out, _ = agmm("rollback", name, "--why", "worse", "--json")
    assert (code, json.loads(out)["version"], shelf.champion) == (0, first, first)


def test_a_refusal_is_json_too(shelf, agmm):
    number = shelf.add()
    flip(shelf.file(number, "model.json"))
    code, out, _ = agmm("promote", shelf.name, "--json")
    told = json.loads(out)
    assert (code, told["moved"]) == (1, False)
    assert "model.json has SHA-256" in told["refused"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "SHELF", "--version", "9"], "has no version 9. Known: 1"),
        (["promote", "SHELF", "--to", "latest"], "cannot be an alias"),
        (["promote", "SHELF", "--gate", "no-such.yaml"], "no-such.yaml"),
        (["rollback", "SHELF"], "Nothing to roll back to"),
        (["show", "SHELF@nobody"], "has no alias 'nobody'. Known: none yet"),
        (["show", "SHELF/two"], "names no version"),
        (["show", "nobody"], "Unknown model 'nobody'"),
        (["compare", "SHELF/1", "SHELF/9"], "has no version 9"),
    ],
)
def test_a_users_mistake_is_exit_code_2(shelf, agmm, words, message):
    shelf.add()
    code, _, err = agmm(*(word.replace("SHELF", shelf.name) for word in words))
    assert code == 2
    assert message in err


def test_list_and_show_name_what_is_known(shelf, agmm):
    number, _ = shelf.crowned(), shelf.add()
    code, out, _ = agmm("list")
    [line] = [line for line in out.splitlines() if f"{shelf.name} " in line and "champion" in line]
    assert code == 0
    assert line.split()[:6] == [shelf.name, str(number), "champion", "0.95", "0.0114", "tiny"]
    _, out, _ = agmm("list", "--json")
    rows = [row for row in json.loads(out)["versions"] if row["name"] == shelf.name]
    assert [(row["version"], row["aliases"]) for row in rows] == [(2, []), (1, ["champion"])]

    code, out, _ = agmm("show", f"models:/{shelf.name}@champion")
    assert code == 0
    for words in ("model.safetensors", "aliases       champion", "flips   0.01", shelf.name):
        assert words in out
    flip(shelf.file(number, "model.json"), 2)
    code, _, err = agmm("show", f"{shelf.name}/{number}")
    assert code == 0  # a damaged version can be looked at
    assert "Warning: " in err


def test_show_has_decisions_and_history(shelf, agmm):
    number = shelf.add()
    agmm("promote", shelf.name)
    found = views.described(shelf.client, shelf.name)
    assert found["decisions"]["promoted.champion"]["version"] == number
    assert [move["version"] for move in found["history"]["champion"]] == [number]
    assert found["problem"] == ""
    assert "history of @champion" in agmm("show", shelf.name)[1]


def test_two_versions_side_by_side(shelf, agmm):
    good, fair = shelf.add(), shelf.add(FAIR)
    pair = f"{shelf.name}/{good}", f"{shelf.name}/{fair}"
    code, out, _ = agmm("compare", *pair)
    assert (code, out.splitlines()[0]) == (0, "as recorded when they were registered")
    _, out, _ = agmm("compare", *pair, "--evaluate", "--json")
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert rows["top1"]["a"] > rows["top1"]["b"]
    assert rows["top1"]["difference"] == rows["top1"]["b"] - rows["top1"]["a"]
    assert rows["sops"]["difference"] == 0
    flip(shelf.file(fair, "model.safetensors"))
    code, _, err = agmm("compare", *pair, "--evaluate")
    assert code == 1
    assert "SHA-256" in err


def test_names_resolve(shelf):
    shelf.crowned()
    newest = shelf.add()
    with pytest.raises(UserError):
        views.names.resolve(shelf.client, f"{shelf.name}@")
    for text, number in ((shelf.name, newest), (f"models:/{shelf.name}@champion", 1), (f"{shelf.name}/1", 1)):
        assert int(views.names.resolve(shelf.client, text).version) == number
