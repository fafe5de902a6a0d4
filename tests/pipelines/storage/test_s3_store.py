"""The S3 store against a real server behind a proxy that misbehaves."""

import hashlib
import os
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from cluster.probes import known_secrets, s3_client
from pipelines.errors import ServiceError
from pipelines.storage import check_writable, open_store, sha256_in
from pipelines.storage.s3 import Limits, S3Store
from tests.s3_proxy import S3Proxy
from tests.s3_server import SECOND_KEY, point_at, s3_server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(180)]

QUICK = Limits(read_timeout=0.7, connect_timeout=0.7, first_pause=0.02, part=5 << 20)
BIG = (11 << 20) + 12345  # three parts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as services:
        yield services


@pytest.fixture(scope="module")
def direct(server):
    """A client that no fault reaches."""
    return s3_client(server, 60.0)


@pytest.fixture(scope="module")
def shared(server):
    with S3Proxy(server.ports.s3) as proxy, pytest.MonkeyPatch.context() as monkeypatch:
        point_at(server, proxy.url, monkeypatch)
        yield proxy, S3Store("agmm", "tests", QUICK)


@pytest.fixture
def proxy(server, shared, monkeypatch):
    """Stands between this process's S3 clients and the server."""
    proxy, _ = shared
    point_at(server, proxy.url, monkeypatch)
    proxy.clear()
    yield proxy
    proxy.clear()


@pytest.fixture
def store(shared, proxy):
    """An empty one. Its client is the same for all, with what botocore's quota for repetitions has left by then."""
    _, store = shared
    store.prefix = f"tests/{uuid.uuid4().hex}/"
    return store


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    path = tmp_path_factory.mktemp("big") / "file"
    path.write_bytes(os.urandom(BIG))
    return path


def _uploads(direct):
    """Multipart uploads that were begun and not ended."""
    return direct.list_multipart_uploads(Bucket="agmm").get("Uploads", [])


# --- each operation under each fault ---------------------------------------------------------------------------------


class _Operations:
    """Each does one thing with a store, once `prepare` has run without faults, and asserts that it is done."""

    def __init__(self, store, folder, big):
        self.store, self.folder, self.big = store, folder, big
        self.small = os.urandom(3000)
        (folder / "small").write_bytes(self.small)

    def prepare(self, operation):
        for key in ("small", "list/a", "list/b"):
            self.store.put(self.folder / "small", key)
        if operation == "get_parts":
            self.store.put(self.big, "big")

    def put(self):
        self.store.put(self.folder / "small", "put")
        assert self.store.read("put") == self.small

    def put_parts(self):
        self.store.put(self.big, "put-big")
        assert sha256_in(self.store, "put-big") == hashlib.sha256(self.big.read_bytes()).hexdigest()

    def get(self):
        self.store.get("small", self.folder / "back")
        assert (self.folder / "back").read_bytes() == self.small

    def get_parts(self):
        self.store.get("big", self.folder / "back")
        assert (self.folder / "back").read_bytes() == self.big.read_bytes()

    def read(self):
        assert self.store.read("small") == self.small

    def read_range(self):
        assert self.store.read_range("small", 100, 2500) == self.small[100:2500]

    def size(self):
        assert self.store.size("small") == 3000

    def keys(self):
        assert self.store.keys("list/") == ["list/a", "list/b"]

    def create(self):
        key = f"claim-{uuid.uuid4().hex}"
        assert self.store.create(key, b"mine")
        assert not self.store.create(key, b"another's")
        assert self.store.read(key) == b"mine"

    def delete(self):
        self.store.delete(["list/b", "list/never"])
        assert self.store.keys("list/") == ["list/a"]


OPERATIONS = [name for name in vars(_Operations) if not name.startswith("_") and name != "prepare"]
SENDING = ["put", "put_parts", "create", "delete"]
ANSWERED = [name for name in OPERATIONS if name != "size"]  # HEAD has no body that could break off
CASES = [
    *((kind, "", name) for kind in ("500", "503", "reset", "reset_after", "stall") for name in OPERATIONS),
    *((kind, "^(PUT|POST)", name) for kind in ("reset_upload", "stall_upload") for name in SENDING),
    *((kind, "^(GET|POST)", name) for kind in ("reset_download", "cut", "stall_download") for name in ANSWERED),
]
WAITING = ("503", "stall")  # boto3 waits seconds after a SlowDown; a stall takes its timeout


def _case(kind, match, name, times, *, slow):
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(kind, match, name, times, id=f"{kind}-{name}-{times}", marks=marks)


@pytest.mark.parametrize(
    ("kind", "match", "name", "times"),
    [
        *(_case(*case, 1 if case[0].startswith(WAITING) else 3, slow=False) for case in CASES),
        *(_case(*case, 3, slow=True) for case in CASES if case[0].startswith(WAITING)),
    ],
)
def test_faults_in_a_row_are_survived(kind, match, name, times, store, proxy, tmp_path, big, direct):
    operations = _Operations(store, tmp_path, big)
    operations.prepare(name)
    proxy.clear()
    proxy.fault(kind, match, times=times)
    getattr(operations, name)()
    assert proxy.struck == times
    assert not _uploads(direct)


@pytest.mark.parametrize("kind", ["500", "reset", "reset_upload", "reset_after"])
@pytest.mark.parametrize("match", ["^POST .*uploads", "^PUT .*partNumber=2", "^POST .*uploadId"])
def test_faults_in_each_stage_of_a_multipart_upload_are_survived(kind, match, store, proxy, tmp_path, big, direct):
    proxy.fault(kind, match, times=3)
    _Operations(store, tmp_path, big).put_parts()
    assert proxy.struck == 3
    assert not _uploads(direct)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_operations_with_a_fifth_of_all_requests_failing(proxy, tmp_path, big, direct):
    store = S3Store("agmm", f"tests/{uuid.uuid4().hex}", Limits(read_timeout=1.0, connect_timeout=1.0))
    operations = _Operations(store, tmp_path, big)
    operations.prepare("get_parts")
    proxy.clear()
    kinds = ("500", "503", "reset", "reset_after", "reset_upload", "reset_download", "cut", "stall", "stall_download")
    for index, kind in enumerate(kinds):  # one after the other: each gets the same share of 0.2 in all
        proxy.fault(kind, probability=0.2 / len(kinds) / (1 - 0.2 * index / len(kinds)), seed=index)
    for count in range(200):
        name = OPERATIONS[count % len(OPERATIONS)]
        if name == "delete":
            store.put(tmp_path / "small", "list/b")
        getattr(operations, name)()
        store.put(tmp_path / "small", "list/b")
    total = sum(proxy.requests.values())
    print(f"{proxy.struck} of {total} requests struck: {dict(proxy.requests)}")
    assert 0.15 < proxy.struck / total < 0.25
    assert not _uploads(direct)


# --- what does not pass ends in a clear error ------------------------------------------------------------------------


def _refused(match, action):
    began = time.monotonic()
    with pytest.raises(ServiceError, match=match) as caught:
        action()
    print(f"{time.monotonic() - began:.1f} s: {caught.value}")
    return str(caught.value), time.monotonic() - began


def test_wrong_credentials(proxy, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    text, took = _refused("the credentials are wrong", lambda: check_writable(open_store("s3://agmm/x"), tmp_path))
    assert took < 10
    assert "planted-secret" not in text
    assert len(proxy.lines) == 1


def test_a_wrong_secret(proxy, monkeypatch, tmp_path, server):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECOND_KEY[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    text, _ = _refused("credentials are wrong.*SignatureDoesNotMatch", lambda: open_store("s3://agmm/x").read("key"))
    assert "planted-secret" not in text
    assert SECOND_KEY[1] not in text


def test_no_credentials(proxy, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    _refused("no complete credentials", lambda: open_store("s3://agmm/x").read("key"))


@pytest.mark.parametrize(
    ("kind", "match", "todo"),
    [
        ("403", "the credentials do not allow it", "policy"),
        ("signature", "the credentials are wrong", "AWS_SECRET_ACCESS_KEY"),
        ("expired", "session token of the credentials has expired", "renew AWS_SESSION_TOKEN"),
        ("no_bucket", "the bucket does not exist", "Create it"),
    ],
)
@pytest.mark.parametrize("name", ["put", "put_parts", "read", "read_range", "keys", "create", "delete"])
def test_a_refusal_is_told_in_words_and_not_repeated(kind, match, todo, name, store, proxy, tmp_path, big):
    operations = _Operations(store, tmp_path, big)
    operations.prepare(name)
    proxy.clear()
    proxy.fault(kind)
    text, took = _refused(match, getattr(operations, name))
    assert todo in text
    assert "s3://agmm/tests" in text
    assert proxy.url in text
    assert took < 5
    assert len(proxy.lines) == 1


@pytest.mark.parametrize("name", ["get", "size"])
def test_a_refused_head_has_no_body_and_is_told_too(name, store, proxy, tmp_path, big):
    proxy.fault("403", "HEAD")
    _refused("the credentials do not allow it", getattr(_Operations(store, tmp_path, big), name))


def test_a_missing_bucket(proxy, tmp_path):
    text, took = _refused("the bucket does not exist", lambda: open_store("s3://no-such-bucket/x").read("key"))
    assert "s3://no-such-bucket/x" in text
    assert took < 10


def test_a_missing_file(store):
    _refused("Cannot read some/key in .*: it is not there", lambda: store.read("some/key"))


def test_a_server_that_is_down_is_found_at_once(monkeypatch, tmp_path, proxy):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    _, took = _refused("does not answer", lambda: check_writable(open_store("s3://agmm/x"), tmp_path))
    assert took < 10


def test_a_proven_server_that_is_down_at_the_first_request_is_waited_for(proxy, server, monkeypatch):
    with S3Proxy(server.ports.s3) as second:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", second.url)
        port = int(second.url.rsplit(":", 1)[1])
    store = open_store("s3://agmm/tests/proven", proven=True)
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(store.keys, "")
        time.sleep(3)
        assert not listed.done()
        with S3Proxy(server.ports.s3, port=port):
            assert listed.result(timeout=40) == []


def test_a_server_that_goes_away_and_comes_back_is_waited_for(proxy, server, monkeypatch):
    with S3Proxy(server.ports.s3) as second:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", second.url)
        store = S3Store("agmm", "tests/away", Limits())
        store.keys("")
        port = int(second.url.rsplit(":", 1)[1])
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(store.create, f"claim-{uuid.uuid4().hex}", b"mine")
        time.sleep(3)
        assert not listed.done()
        with S3Proxy(server.ports.s3, port=port):
            assert listed.result(timeout=40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "stall", "stall_download", "reset"])
def test_a_server_that_never_recovers_ends_within_a_minute(kind, proxy, store, tmp_path):
    (tmp_path / "small").write_bytes(b"x" * 3000)
    store.put(tmp_path / "small", "small")
    lasting = S3Store("agmm", store.prefix.rstrip("/"), Limits())
    proxy.fault(kind, amount=300)
    _, took = _refused(".", lambda: lasting.read("small"))
    assert took < 60


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_upload_that_stalls_midway_ends_within_two_minutes(proxy, big):
    store = S3Store("agmm", f"tests/{uuid.uuid4().hex}", Limits(part=5 << 20))
    proxy.fault("stall", "partNumber=2", amount=300)
    _, took = _refused("does not answer|keeps breaking", lambda: store.put(big, "big"))
    assert took < 120


# --- the rest of what is promised ------------------------------------------------------------------------------------


def test_an_upload_that_fails_leaves_no_parts(store, proxy, big, direct):
    proxy.fault("403", "partNumber=3")
    _refused("do not allow it", lambda: store.put(big, "big"))
    assert not _uploads(direct)
    assert store.keys("") == []


def test_parts_of_a_killed_upload_are_freed_by_the_next(store, proxy, big, direct):
    for key in ("big", "bigger"):
        left = direct.create_multipart_upload(Bucket="agmm", Key=store.prefix + key)
        direct.upload_part(Bucket="agmm", Key=store.prefix + key, UploadId=left["UploadId"], PartNumber=1, Body=b"x")
    store.put(big, "big")
    assert [upload["Key"] for upload in _uploads(direct)] == [store.prefix + "bigger"]
    direct.abort_multipart_upload(Bucket="agmm", Key=left["Key"], UploadId=left["UploadId"])


def test_a_claim_whose_answer_was_lost_is_ours(store, proxy):
    proxy.fault("reset_after", "PUT", times=1)
    assert store.create("claim", b"first")
    assert proxy.requests["PUT", ""] == 1  # boto3 repeated it, and was told that it is there
    proxy.fault("reset_after", "PUT", times=1)
    assert not store.create("claim", b"second")
    assert store.read("claim") == b"first"


def test_a_claim_that_stands_is_recognised_by_an_answer_that_breaks_off(store, proxy):
    assert store.create("claim", b"first")
    proxy.fault("cut", "PUT", times=1)
    assert not store.create("claim", b"second")
    assert proxy.struck == 1


def test_of_many_who_create_one_succeeds(proxy):
    stores = [S3Store("agmm", "tests/claims") for _ in range(4)]
    names = [uuid.uuid4().hex for _ in range(10)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for name in names:
            start = threading.Barrier(len(stores))

            def claim(index, name=name, start=start):
                start.wait()
                return stores[index].create(name, str(index).encode())

            won = list(pool.map(claim, range(len(stores))))
            assert won.count(True) == 1
            assert stores[0].read(name) == str(won.index(True)).encode()


def test_a_file_that_is_replaced_while_it_is_read_is_refused(store, proxy, big, direct, tmp_path):
    store.put(big, "big")
    proxy.fault("stall", "GET .*big", times=4)
    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(store.get, "big", tmp_path / "back")
        while not proxy.struck:
            time.sleep(0.01)
        direct.put_object(Bucket="agmm", Key=store.prefix + "big", Body=b"another")
        with pytest.raises(ServiceError, match="written anew"):
            fetched.result()
    assert not list(tmp_path.iterdir())


def test_empty_files_and_ranges_past_the_end(store, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    store.put(tmp_path / "empty", "empty")
    store.get("empty", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""
    assert store.read_range("empty", 5, 10) == b""
    assert store.read_range("empty", 0, 0) == b""


def test_more_than_a_thousand_files_are_listed_and_deleted(store, proxy):
    keys = [f"many/{index:04d}" for index in range(1003)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.create(key, b""), keys))
    assert store.keys("many/") == keys
    proxy.clear()
    store.delete(keys)
    assert proxy.requests["POST", ""] == 2
    assert store.keys("many/") == []


def test_an_upload_in_chunks_with_a_trailing_checksum_passes_the_proxy(proxy, direct):
    """As boto3 sends over TLS: `aws-chunked`. Over plain HTTP it puts the checksum into the head, so it is told to."""

    def trail(params, **_):
        params["context"]["checksum"]["request_algorithm"]["in"] = "trailer"

    client = boto3.session.Session().client("s3")
    client.meta.events.register("before-call.s3.PutObject", trail)
    proxy.fault("reset_upload", "PUT", times=1)
    content = os.urandom(300_000)
    name = f"tests/{uuid.uuid4().hex}"
    client.put_object(Bucket="agmm", Key=name, Body=content)
    assert "transfer-encoding: chunked" in proxy.last_head.lower()
    assert direct.get_object(Bucket="agmm", Key=name)["Body"].read() == content


def test_a_full_disk_at_home_is_not_the_servers_fault(store, proxy, tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    store.put(tmp_path / "small", "small")
    text, _ = _refused("Cannot write", lambda: store.get("small", tmp_path / "no" / "folder"))
    assert "server" not in text
    _refused("a local file cannot be used", lambda: store.put(tmp_path / "nothing", "key"))


def test_credentials_that_expire_are_renewed(proxy, server, tmp_path, monkeypatch):
    """By the command of a profile, as roles of pods are: botocore renews what expires within a quarter of an hour."""
    known = known_secrets(server)
    pairs = [(known.s3_key, known.s3_secret), SECOND_KEY]
    command = tmp_path / "renew.py"
    command.write_text(
        "import datetime, json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "calls = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(calls + 1))\n"
        f"key, secret = {pairs!r}[min(calls, 1)]\n"
        "end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5 if calls == 0 else 60)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': key, 'SecretAccessKey': secret,"
        " 'Expiration': end.isoformat()}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = us-east-1\ncredential_process = {sys.executable} {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    store = S3Store("agmm", f"tests/{uuid.uuid4().hex}", QUICK)
    assert store.create("a", b"x")
    assert store.read("a") == b"x"
    assert store.read("a") == b"x"
    assert proxy.access_keys[-1] == SECOND_KEY[0]


def test_a_slow_line_is_no_stall(proxy, big):
    """The timeouts are for silence, not for the whole of a transfer: this takes several times as long as they are."""
    store = S3Store("agmm", f"tests/{uuid.uuid4().hex}", Limits(read_timeout=1.5, connect_timeout=1.0))
    proxy.fault("trickle", "PUT", amount=3e6)
    began = time.monotonic()
    store.put(big, "big")
    assert time.monotonic() - began > 3
    assert len(proxy.lines) == 1
    assert sha256_in(store, "big") == hashlib.sha256(big.read_bytes()).hexdigest()
