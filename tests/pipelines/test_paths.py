"""Names that become paths or keys: what leads elsewhere is refused in words, and nothing is written or read outside."""

import hashlib
import itertools
import json
import os

import pytest

from pipelines import cli
from pipelines.checkpoints.committed import MANIFEST, MARKER, read_manifest
from pipelines.config import parse_config
from pipelines.data.manifest import parse_manifest
from pipelines.data.publish import push
from pipelines.data.seal import sealed
from pipelines.data.staging import stage
from pipelines.errors import ServiceError, UserError
from pipelines.names import checked_run_id
from pipelines.storage import FolderStore, open_store
from pipelines.tracking.spool import Spool

EVIL = (
    *("..", "../..", "../../etc/passwd", "/etc/passwd", "a/../../b", "./a", "a/.", "a//b", "a/", ".", "", ".hidden"),
    *("..%2f..%2fetc", "%2e%2e/etc", "%00", "..\\..\\etc", "C:\\x", "~", "~root/x", "~nobody-here/x", "-", "--out"),
    *("a\x00b", "a\x01b", "a\nb", "a\r", "\x1b[31mred", "a\x7f", "a\u202eb", "a\u200bb", "\udcff", "a\u2028b"),
    *("\u2024\u2024/etc", "\uff0e\uff0e/etc", "\u2025", "a\uff0fb", "a" * 300, "a/" * 3000, "é" * 200, "a ", " a"),
    *("$(id)", "`id`", "a|b", "a;b", "*", "?", "[x", "a:b", "'", '"'),
)
# What a name of ours may be: the rest of EVIL is refused wherever a name is given.
COMMANDS = (
    ["train", "{}"],
    ["train", "{}.yaml"],
    ["tune", "{}"],
    ["train", "cifar10_resnet19", "--set", "name={}"],
    ["recipes", "show", "{}"],
    ["data", "fetch", "{}"],
    ["data", "build", "{}"],
    ["data", "verify", "{}"],
    ["data", "stage", "{}"],
    ["data", "stage", "s3://{}/x"],
    ["data", "verify", "s3://bucket/{}/../x"],
    ["data", "push", "{}", "out"],
    ["evaluate", "{}"],
    ["evaluate", "models:/{}/1"],
    ["evaluate", "runs:/{}/model"],
    ["export", "{}", "--to", "c", "--out", "x.c"],
    ["checkpoints", "list", "{}"],
    ["checkpoints", "verify", "nothing/{}"],
    ["models", "show", "{}"],
    ["models", "promote", "{}"],
    ["models", "rollback", "{}"],
    ["predict", "{}", "x.png"],
    ["landscape", "{}", "--out", "grid"],
    ["convert", "{}", "--out", "out"],
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working folder; `outside` beside it must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    return tmp_path


def test_the_command_line_refuses_in_words(workplace, capsys):
    """Each name at a command, each command with several names: exit code 2, no traceback, nothing written."""
    # without options, and without folders of this machine, which may be looked at
    names = [name for name in EVIL if name not in ("-", "--out", "~", "?", "*", ".", "", "..", "../..")]
    pairs = list(zip(itertools.cycle(COMMANDS), names * 3, strict=False))
    assert len(pairs) > 100
    for words, name in pairs:
        with pytest.raises(SystemExit) as ended:
            cli.main([word.format(name) for word in words])
        said = capsys.readouterr().err
        assert (ended.value.code, "Traceback" in said) == (2, False), (words, name[:40], said[-500:])
    assert sorted(path.name for path in workplace.iterdir()) in (["here", "outside"], ["here", "home", "outside"])
    assert list((workplace / "here").iterdir()) == []
    assert [path.name for path in (workplace / "outside").iterdir()] == ["kept"]


FIELDS = ("name", "data.dataset", "tracking.register_as")


@pytest.mark.parametrize("field", FIELDS)
def test_names_in_a_recipe(tiny_tree, field):
    for evil in EVIL:
        *sections, leaf = field.split(".")
        tree = json.loads(json.dumps(tiny_tree))
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[leaf] = evil
        with pytest.raises(UserError, match=field):
            parse_config(tree, origin="tiny")


def test_extends_with_characters_that_cannot_be_seen(tmp_path):
    for number, evil in enumerate(("a\\0.yaml", "../a\\x01.yaml", "\\u202elmay.yaml")):
        (tmp_path / f"{number}.yaml").write_text(f'extends: "{evil}"\n')
        with pytest.raises(SystemExit) as ended:
            cli.main(["recipes", "show", str(tmp_path / f"{number}.yaml")])
        assert ended.value.code == 2


@pytest.mark.parametrize("name", [name for name in EVIL if name not in ("a:b", "é" * 200)])
def test_file_names_of_a_foreign_checkpoint(tmp_path, name):
    """Its hashes are right: whoever made it wanted it to be read."""
    store = FolderStore(tmp_path)
    folder = tmp_path / "attempt-0001-step-000000001"
    folder.mkdir()
    manifest = json.dumps({"format": 2, "attempt": 1, "sha256": {name: "0" * 64}}).encode()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / MARKER).write_text(hashlib.sha256(manifest).hexdigest())
    with pytest.raises(ServiceError, match="outside its folder"):
        read_manifest(store, folder.name)


@pytest.mark.parametrize("name", [name for name in EVIL if name != "\udcff"])  # no JSON file can hold it
def test_the_name_of_a_foreign_data_set(tiny_data, name):
    tree = json.loads((tiny_data / "manifest.json").read_text())
    content = sealed({key: value for key, value in tree.items() if key != "checksum"} | {"name": name})
    with pytest.raises(UserError, match="manifest"):
        parse_manifest(content, "manifest.json")


def test_splits_of_a_foreign_data_set(tiny_data):
    tree = json.loads((tiny_data / "manifest.json").read_text())
    tree.pop("checksum")
    for evil in set(EVIL) - {"\udcff"}:
        splits = {**tree["splits"], evil: tree["splits"]["val"]}
        with pytest.raises(UserError, match=r"lists splits|damaged|read"):
            parse_manifest(sealed({**tree, "splits": splits}), "manifest.json")


@pytest.mark.parametrize("run_id", [each for each in EVIL if each not in ("-", "--out")])
def test_run_ids_of_a_foreign_tracking_server(run_id, tmp_path):
    with pytest.raises(UserError, match="no id of a run"):
        checked_run_id(run_id)
    with pytest.raises(UserError, match="no id of a run"):
        Spool(run_id)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "s3://../x",
            "s3:///x",
            "s3://b",
            "s3://bucket/../x",
            "s3://bucket/a/../../x",
            "s3://bucket/a//b",
            "s3://bu ck/x",
        ),
        *(
            "s3://bucket/a?b",
            "s3://bucket/a#b",
            "s3://bucket/./a",
            "s3://bucket\n/x",
            "s3://bucket/a\x00",
            "s3://%2e%2e/x",
        ),
    ],
)
def test_addresses_in_s3(uri):
    with pytest.raises(UserError):
        open_store(uri)


@pytest.fixture
def store_with_links(tmp_path):
    """A store in which somebody has planted links: to a file, to a folder, and round in a circle."""
    outside, root = tmp_path / "outside", tmp_path / "store"
    outside.mkdir()
    root.mkdir()
    (outside / "secret").write_text("secret")
    (root / "file").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    return FolderStore(root)


@pytest.mark.parametrize("key", ["file", "folder/secret", "folder/new", "../outside/secret", "circle", "circle/x"])
def test_links_in_a_store_are_not_followed_out_of_it(store_with_links, tmp_path, key):
    store = store_with_links
    source = tmp_path / "source"
    source.write_text("other")
    tries = (
        lambda: store.read(key),
        lambda: store.size(key),
        lambda: store.read_range(key, 0, 3),
        lambda: store.get(key, tmp_path / "got"),
        lambda: store.put(source, f"{key}/below" if key.startswith("circle") else key),
    )
    for each in tries:
        with pytest.raises(ServiceError):
            each()
    if "/" in key:
        with pytest.raises(ServiceError):
            store.create(key, b"x")
        with pytest.raises(ServiceError):
            store.delete([key])
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]
    assert not (tmp_path / "got").exists()


def test_a_link_in_a_store_can_be_deleted(store_with_links, tmp_path):
    store_with_links.delete(["file"])
    assert not (store_with_links.root / "file").is_symlink()
    assert (tmp_path / "outside" / "secret").exists()


def test_links_in_a_cache_are_not_written_through(tiny_data, tmp_path, monkeypatch):
    """A cache may be a folder in which others can write, with names that they know beforehand."""
    cache, victim = tmp_path / "shared", tmp_path / "victim"
    monkeypatch.setenv("AGMM_CACHE", str(cache))
    key = hashlib.sha256((tiny_data / "manifest.json").read_bytes()).hexdigest()
    names = ("train.beton.partial", "train.beton.done", "train.beton.chunks", f".verified.json.{os.getpid()}")
    for name in (*names, "manifest.json.partial"):
        (cache / key).mkdir(parents=True, exist_ok=True)
        victim.write_text("mine")
        planted = cache / key / name
        planted.symlink_to(victim)
        try:
            stage(tiny_data.as_uri())
        except ServiceError as error:
            assert "link" in str(error)  # noqa: PT017
        assert victim.read_text() == "mine", name
        planted.unlink(missing_ok=True)
        for path in (cache / key).iterdir():
            path.unlink()


def test_a_cache_that_is_a_link_is_refused(tiny_data, tmp_path, monkeypatch):
    cache = tmp_path / "shared"
    monkeypatch.setenv("AGMM_CACHE", str(cache))
    key = hashlib.sha256((tiny_data / "manifest.json").read_bytes()).hexdigest()
    (tmp_path / "victim").mkdir()
    cache.mkdir()
    (cache / key).symlink_to(tmp_path / "victim")
    with pytest.raises(ServiceError, match="is a link"):
        stage(tiny_data.as_uri())
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_data_set_with_a_link_to_another_file_is_not_uploaded(tiny_data, tmp_path):
    folder, target = tmp_path / "data", tmp_path / "store"
    folder.mkdir()
    for path in tiny_data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "val.beton").unlink()
    (folder / "val.beton").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"not whole|damaged"):
        push(folder, str(target))
    assert not target.exists()
