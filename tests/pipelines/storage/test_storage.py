import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.errors import ServiceError, UserError
from pipelines.storage import check_writable, open_store, sha256_in


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def _file(tmp_path, text="content"):
    path = tmp_path / "source"
    path.write_text(text)
    return path


def test_put_read_list_get_delete(store, tmp_path):
    for key in ("a/1", "a/2", "b/1"):
        store.put(_file(tmp_path, key), key)
    assert store.read("a/2") == b"a/2"
    assert store.keys("a/") == ["a/1", "a/2"]
    assert store.keys("") == ["a/1", "a/2", "b/1"]
    store.get("b/1", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "b/1"
    store.delete(["a/1", "a/2", "never/there"])
    assert store.keys("") == ["b/1"]
    assert not (tmp_path / "store" / "a").exists()


def test_an_empty_store_lists_nothing(store):
    assert store.keys("step-") == []


def test_a_full_disk_leaves_nothing_under_the_final_name(store, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.storage.sync", full)
    with pytest.raises(ServiceError, match="No space left on device"):
        store.put(_file(tmp_path), "key")
    assert store.keys("") == []


def test_reading_what_is_not_there_is_named(store):
    with pytest.raises(ServiceError, match="nothing/here"):
        store.read("nothing/here")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="s3:// or a folder"):
        open_store("ftp://host/folder")


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="Cannot write"):
        check_writable(open_store(str(tmp_path / "file" / "below")), tmp_path / "scratch")


def test_an_s3_server_that_is_down_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    with pytest.raises(ServiceError, match=r"s3://bucket/prefix at http://127\.0\.0\.1:9") as caught:
        check_writable(open_store("s3://bucket/prefix"), tmp_path)
    assert "agmm status" in str(caught.value)
    assert "very-secret-value" not in str(caught.value)


def test_of_two_who_create_one_succeeds(store):
    assert store.create("claims/0001", b"first")
    assert not store.create("claims/0001", b"second")
    assert store.read("claims/0001") == b"first"


def test_a_file_is_read_in_parts(store, tmp_path):
    store.put(_file(tmp_path, "0123456789"), "key")
    assert store.size("key") == 10
    assert store.read_range("key", 2, 5) == b"234"
    assert store.read_range("key", 8, 50) == b"89"
    assert sha256_in(store, "key") == hashlib.sha256(b"0123456789").hexdigest()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/checkpoints").uri == str(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="in full"):
        open_store("~nobody-of-that-name/checkpoints")


def test_listing_and_deleting_while_another_process_deletes(store, tmp_path):
    """One lists the folder, and two delete the same keys of it, again and again."""
    source, ended = _file(tmp_path), threading.Event()
    kept = [f"kept/{number}" for number in range(3)]
    for key in kept:
        store.put(source, key)

    def list_all():
        listed = 0
        while not ended.is_set():
            assert set(kept) <= set(store.keys(""))
            listed += 1
        return listed

    with ThreadPoolExecutor(3) as pool:
        lister = pool.submit(list_all)
        try:
            for number in range(60):
                keys = [f"run-{number}/{name}/file" for name in "abcdef"]
                for key in keys:
                    (store.root / key).parent.mkdir(parents=True)
                    (store.root / key).touch()
                for deleted in [pool.submit(store.delete, keys) for _ in range(2)]:
                    deleted.result()
        finally:
            ended.set()
        assert lister.result() > 0
    assert store.keys("") == kept


def test_a_folder_that_fails_to_list_is_told_and_not_taken_for_empty(store, tmp_path, monkeypatch):
    store.put(_file(tmp_path), "a/1")

    def scandir(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ServiceError, match=r"Cannot list .*: Input/output error"):
        store.keys("")
