import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import faults
from pipelines.data import cache, origin
from pipelines.data.beton import BetonReader
from pipelines.data.manifest import MANIFEST, ensure_verified, verify
from pipelines.data.publish import push, verify_origin
from pipelines.data.staging import data_folder, stage, staged
from pipelines.errors import ServiceError, UserError
from tests.pipelines.data.staging_helpers import CHUNK, CountingStore, flip, small_chunks, without_chunks


@pytest.fixture
def built(square, tmp_path):
    return small_chunks(square, tmp_path / "origin")


@pytest.fixture
def store(built, monkeypatch):
    counting = CountingStore(built)
    monkeypatch.setattr(origin, "open_store", lambda _, proven: counting)
    return counting


@pytest.fixture
def uri(built):
    return f"file://{built}"


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    for folder in list(cache._held):
        cache.let_go(folder)


def _same(folder, built):
    names = {"train.beton", "val.beton", MANIFEST}
    return all((folder / name).read_bytes() == (built / name).read_bytes() for name in names)


def _no_traces(folder):
    return not [path.name for path in folder.iterdir() if path.suffix in (".partial", ".done")]


def _inject(monkeypatch, text):
    monkeypatch.setattr(faults, "_faults", faults._parse(text))
    monkeypatch.setattr(faults, "_passed", faults.Counter())


def test_a_path_is_itself(tmp_path):
    assert stage(str(tmp_path / "anything")) == tmp_path / "anything"
    assert data_folder(None, "square") == Path(os.environ["AGMM_HOME"]) / "data" / "square"


def test_an_address_is_copied_once(store, built, uri):
    said = []
    folder = stage(uri, say=said.append)
    assert folder == cache.cache_dir() / hashlib.sha256((built / MANIFEST).read_bytes()).hexdigest()
    assert _same(folder, built)
    assert _no_traces(folder)
    chunks = sum(-(-(built / f"{split}.beton").stat().st_size // CHUNK) for split in ("train", "val"))
    assert len(store.ranges) == len(set(store.ranges)) == chunks
    assert any("MB/s" in line for line in said)
    assert stage(uri, say=said.append) == folder
    assert len(store.ranges) == chunks
    assert len(verify(folder).splits) == 2


def test_the_next_start_hashes_nothing(store, uri, monkeypatch):
    folder = stage(uri)
    monkeypatch.setattr("pipelines.data.manifest.file_digest", None)
    assert ensure_verified(folder).name == "square"
    monkeypatch.setattr("pipelines.data.download.os.pread", None)
    assert stage(uri) == folder


def test_another_data_set_at_the_same_address_has_a_folder_of_its_own(square, built, uri, tmp_path):
    first = stage(uri)
    shutil.rmtree(built)
    small_chunks(square, built, name="other")
    second = stage(uri)
    assert first != second
    assert (ensure_verified(first).name, ensure_verified(second).name) == ("square", "other")


def test_workers_take_what_the_driver_has(store, built, uri, tmp_path, monkeypatch):
    folder = stage(uri)
    reads = len(store.reads)
    assert staged(uri, str(folder)) == folder
    assert staged(str(built), str(built)) == built
    assert len(store.reads) == reads, "the origin is not asked"
    monkeypatch.setenv("AGMM_CACHE", str(tmp_path / "another-node"))
    elsewhere = staged(uri, "/nowhere/" + folder.name)
    assert elsewhere == tmp_path / "another-node" / folder.name
    assert _same(elsewhere, built)
    assert staged(uri, "/nowhere/" + folder.name) == elsewhere


def test_a_worker_refuses_what_the_driver_did_not_check(built, uri):
    with pytest.raises(UserError, match="another data set than when this run started"):
        staged(uri, "/nowhere/" + "0" * 64)


@pytest.mark.parametrize("digests", [True, False])
def test_staging_goes_on_where_it_was_cut(store, built, uri, monkeypatch, digests):
    if not digests:
        without_chunks(built)
        monkeypatch.setattr("pipelines.data.manifest.Chunks", None)
        monkeypatch.setattr(origin, "Chunks", lambda length: origin_chunks(length, CHUNK))
    _inject(monkeypatch, "data.stage.chunk=error@12")
    with pytest.raises(ServiceError, match=r"Cannot stage file://.*injected.*goes on from there"):
        stage(uri)
    first = set(store.ranges)
    store.ranges.clear()
    partial = next(cache.cache_dir().glob("*/train.beton.done"))
    done = {int(line) for line in partial.read_text().split()}
    assert len(done) >= 3
    _inject(monkeypatch, "")
    assert _same(stage(uri), built)
    again = {start // CHUNK for key, start in store.ranges if key == "train.beton"}
    assert not done & again
    assert done | again == set(range(-(-(built / "train.beton").stat().st_size // CHUNK)))
    assert len(first & set(store.ranges)) <= 9, "what was on its way when it was cut"


origin_chunks = origin.Chunks


def test_a_partial_file_is_hashed_before_it_counts(store, built, uri, monkeypatch):
    _inject(monkeypatch, "data.stage.chunk=error@20")
    with pytest.raises(ServiceError):
        stage(uri)
    partial = next(cache.cache_dir().glob("*/train.beton.partial"))
    done = int(partial.with_suffix(".done").read_text().split()[0])
    flip(partial, done * CHUNK + 5)
    _inject(monkeypatch, "")
    store.ranges.clear()
    assert _same(stage(uri), built)
    assert store.ranges.count(("train.beton", done * CHUNK)) == 1


def test_a_flipped_byte_in_the_cache_costs_one_chunk(store, built, uri):
    folder = stage(uri)
    store.ranges.clear()
    flip(folder / "train.beton", 5 * CHUNK + 77)
    said = []
    assert stage(uri, say=said.append) == folder
    assert store.ranges == [("train.beton", 5 * CHUNK)]
    assert any("train.beton is damaged: fetching 1 of its chunks again" in line for line in said)
    assert _same(folder, built)
    stage(uri)
    assert len(store.ranges) == 1


def test_a_flipped_byte_costs_the_whole_file_without_chunks(store, built, uri):
    without_chunks(built)
    folder = stage(uri)
    store.ranges.clear()
    flip(folder / "val.beton", 77)
    said = []
    stage(uri, say=said.append)
    assert {key for key, _ in store.ranges} == {"val.beton"}
    assert "lists no chunks" in said[0]
    assert sum("damaged" in line for line in said) == 1
    assert _same(folder, built)


@pytest.mark.parametrize("length", [0, 3 * CHUNK + 1, -1, None])
def test_a_file_of_another_length_is_mended(store, built, uri, length):
    folder = stage(uri)
    store.ranges.clear()
    path = folder / "train.beton"
    whole = path.stat().st_size
    if length is None:
        with path.open("ab") as file:
            file.write(b"more")
    else:
        os.truncate(path, length % whole)
    stage(uri)
    assert _same(folder, built)
    expected = {0: -(-whole // CHUNK), 3 * CHUNK + 1: -(-whole // CHUNK) - 3, -1: 1, None: 0}[length]
    assert len(store.ranges) == expected


@pytest.mark.parametrize("name", [MANIFEST, ".verified.json"])
def test_a_lost_manifest_or_stamp_costs_no_download(store, built, uri, name):
    folder = stage(uri)
    store.ranges.clear()
    (folder / name).write_text("{")
    stage(uri)
    assert _same(folder, built)
    assert store.ranges == []


def test_a_disk_that_damages_what_is_mended_is_named(store, uri, monkeypatch):
    folder = stage(uri)
    flip(folder / "train.beton", 9)

    def lying(file, content, start):
        return os.__dict__["pwrite_right"](file, bytes(len(content)), start)

    monkeypatch.setitem(os.__dict__, "pwrite_right", os.pwrite)
    monkeypatch.setattr("pipelines.data.download.os.pwrite", lying)
    with pytest.raises(ServiceError, match=r"train\.beton was mended and is damaged again, in 1 chunks"):
        stage(uri)


def test_a_chunk_that_comes_wrong_once_is_asked_for_again(store, built, uri):
    spoiled = []

    def before(key, start, content):
        if start == 2 * CHUNK and key == "val.beton" and not spoiled:
            spoiled.append(start)
            return content[:-1]
        return content

    store.before = before
    assert _same(stage(uri), built)
    assert store.ranges.count(("val.beton", 2 * CHUNK)) == 2


def test_a_damaged_origin_is_refused_by_name(store, built, uri):
    flip(built / "val.beton", 2 * CHUNK + 3)
    named = rf"val\.beton is damaged: bytes {2 * CHUNK} to {3 * CHUNK - 1} came 2 times.*agmm data push"
    for refuse in (stage, verify_origin):
        store.ranges.clear()
        with pytest.raises(ServiceError, match=named):
            refuse(uri)
        assert store.ranges.count(("val.beton", 2 * CHUNK)) == 2
    os.truncate(built / "train.beton", 1000)
    with pytest.raises(ServiceError, match=r"train\.beton is damaged: it has 1000 bytes"):
        verify_origin(uri)


def test_a_damaged_origin_without_chunks_is_refused_by_name(store, built, uri):
    without_chunks(built)
    flip(built / "train.beton", 2 * CHUNK + 3)
    for refuse, words in ((stage, "came twice"), (verify_origin, "SHA-256")):
        with pytest.raises(ServiceError, match=rf"train\.beton is damaged.*{words}"):
            refuse(uri)
    assert not list(cache.cache_dir().glob("*/train.beton*"))


def test_a_damaged_list_of_chunks_is_refused_by_name(built, uri):
    flip(built / "train.beton.chunks", 3)
    with pytest.raises(ServiceError, match=r"train\.beton\.chunks is damaged"):
        stage(uri)


def test_what_is_no_data_set_is_refused(tmp_path, built, uri):
    with pytest.raises(UserError, match=r"nothing has no manifest\.json.*agmm data push"):
        stage(f"file://{tmp_path}/nothing")
    with pytest.raises(UserError, match="must be a folder, s3://"):
        data_folder("http://somewhere/data", "square")
    flip(built / MANIFEST, 300)
    with pytest.raises(UserError, match=r"origin/manifest\.json"):
        stage(uri)


def test_push_then_stage(square, tmp_path):
    target = f"file://{tmp_path}/bucket/prefix"
    said = []
    push(square, target, say=said.append)
    assert len(said) == 2
    with pytest.raises(UserError, match="--overwrite"):
        push(square, target)
    flip(tmp_path / "bucket/prefix/val.beton", 4)
    with pytest.raises(ServiceError, match=r"val\.beton is damaged"):
        verify_origin(target)
    push(square, target, overwrite=True)
    assert verify_origin(target) == verify(stage(target))
    assert len(BetonReader(stage(target) / "val.beton")) == 15


def test_a_damaged_folder_is_not_uploaded(built, tmp_path):
    flip(built / "val.beton", 4)
    with pytest.raises(UserError, match=r"val\.beton is damaged"):
        push(built, f"file://{tmp_path}/bucket")
    assert not (tmp_path / "bucket").exists()


def _others(square, tmp_path, count):
    """Staged data sets, oldest first, that this process no longer uses."""
    folders = []
    for index in range(count):
        small_chunks(square, tmp_path / f"other{index}", name=f"other{index}")
        folder = stage(f"file://{tmp_path}/other{index}")
        cache.let_go(folder)
        os.utime(cache.cache_dir() / "locks" / f"{folder.name}.use", (index + 1, index + 1))
        folders.append(folder)
    return folders


def test_the_least_recently_used_leave_the_cache(square, built, uri, tmp_path, monkeypatch):
    first, second, third = _others(square, tmp_path, 3)
    each = sum((built / f"{split}.beton").stat().st_size for split in ("train", "val"))
    cache.hold(second)
    monkeypatch.setenv("AGMM_CACHE_LIMIT", str(3 * each + (2 << 20)))
    said = []
    folder = stage(uri, say=said.append)
    assert [path.exists() for path in (first, second, third, folder)] == [False, True, True, True]
    assert any(f"removing {first} from the cache" in line for line in said)


def test_what_is_in_use_or_would_not_suffice_stays(square, built, uri, tmp_path, monkeypatch):
    first, second = _others(square, tmp_path, 2)
    each = sum((built / f"{split}.beton").stat().st_size for split in ("train", "val"))
    monkeypatch.setenv("AGMM_CACHE_LIMIT", f"{(each + 100_000) / 1e6:.3f}MB")
    stamp = (first / MANIFEST).stat()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from pathlib import Path; from pipelines.data.cache import hold\n"
            f"hold(Path({str(first)!r})); print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ServiceError, match=r"No room in .* AGMM_CACHE_LIMIT is .* other data sets take"):
            stage(uri)
        other.communicate("\n")
    assert (first / MANIFEST).stat() == stamp
    assert second.exists()
    stage(uri)
    assert not first.exists()
    assert not second.exists()


def test_a_disk_without_room_is_refused_before_the_download(store, uri, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("pipelines.data.cache.shutil.disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ServiceError, match=r"No room in .*the disk has 1\.0 MB free, AGMM_CACHE_LIMIT is not set"):
        stage(uri)
    assert store.ranges == []


@pytest.mark.parametrize(
    ("text", "count"), [("", None), ("123", 123), ("200GB", 200 * 10**9), ("1.5 TiB", 3 << 39), ("10k", 10_000)]
)
def test_limits(monkeypatch, text, count):
    monkeypatch.setenv("AGMM_CACHE_LIMIT", text)
    assert cache.cache_limit() == count


@pytest.mark.parametrize("text", ["much", "-1", "GB", "1PB"])
def test_a_limit_that_means_nothing_is_refused(monkeypatch, text):
    monkeypatch.setenv("AGMM_CACHE_LIMIT", text)
    with pytest.raises(UserError, match="AGMM_CACHE_LIMIT"):
        cache.cache_limit()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("AGMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "agmm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    assert cache.cache_dir() == tmp_path / "someone" / ".cache" / "agmm"


def test_clear_leaves_what_is_in_use(square, built, uri, tmp_path):
    _others(square, tmp_path, 1)
    folder = stage(uri)
    said = []
    other = threading.Thread(target=lambda: said.append(cache.clear(cache.cache_dir(), said.append)))
    other.start()
    other.join()
    assert said == [f"{folder} is in use and stays", 1]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 40 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_on_the_way(store, built, uri, full_disk, monkeypatch):
    """What was fetched stays, and the next try goes on."""
    monkeypatch.setenv("AGMM_CACHE", str(full_disk))

    def fill_up(key, start, content):
        if len(store.ranges) > 10 and not (full_disk / "junk").exists():
            (full_disk / "junk").write_bytes(bytes(shutil.disk_usage(full_disk).free - 4096))
        return content

    store.before = fill_up
    with pytest.raises(ServiceError, match=r"the disk is full\. What was fetched stays"):
        stage(uri)
    store.before = lambda key, start, content: content
    (full_disk / "junk").unlink()
    store.ranges.clear()
    folder = stage(uri)
    assert _same(folder, built)
    cache.let_go(folder)


def _command(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "data", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_one_downloads(built, uri):
    slow = {"AGMM_FAULTS": "data.stage.chunk=sleep:0.15"}
    processes = [_command("stage", uri, **slow) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in ended}) == 1
    assert _same(Path(ended[0][0].strip()), built)
    assert sum("MB/s" in said for _, said in ended) == 1
    assert sum("waiting for it" in said for _, said in ended) == 2


@pytest.mark.parametrize("point", ["data.stage.chunk=crash@25", "data.stage.commit=crash"])
def test_a_killed_staging_goes_on(built, uri, point, store):
    with _command("stage", uri, AGMM_FAULTS=point) as killed:
        killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = next(path for path in cache.cache_dir().iterdir() if path.name != "locks")
    assert not (left / MANIFEST).exists()
    started = time.monotonic()
    folder = stage(uri)
    assert time.monotonic() - started < 30
    assert folder == left
    assert _same(folder, built)
    assert _no_traces(folder)
    total = sum(-(-(built / f"{split}.beton").stat().st_size // CHUNK) for split in ("train", "val"))
    assert len(store.ranges) == (0 if "commit" in point else pytest.approx(total - 24, abs=9))


def test_the_commands(square, tmp_path):
    target = f"file://{tmp_path}/bucket"
    for words, shown in (
        (["push", str(square), target], str(tmp_path / "bucket")),
        (["verify", target], "square: whole"),
        (["stage", target], str(cache.cache_dir())),
        (["cache"], str(cache.cache_dir())),
        (["cache", "--clear"], "1 removed"),
        (["cache"], "nothing is staged"),
    ):
        with _command(*words) as process:
            out, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert shown in out
