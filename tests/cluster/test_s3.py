"""What the client of a bucket does where a request fails, before a real server."""

import errno
import io
import logging
import os
import re
import secrets
import time
import traceback

import pytest

from tests.s3 import on_servers, prefix_of, proxied
from vtx_scale.cluster.storage import pace, s3
from vtx_scale.data_pipeline.storage import Changed

BODY = os.urandom(200_000)


@pytest.fixture(params=on_servers())
def served(request):
    """A server and a bucket."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(served, monkeypatch):
    return prefix_of(*served, monkeypatch)


@pytest.fixture
def proxy(served):
    with proxied(served[0]) as proxy:
        yield proxy


@pytest.fixture
def through(bucket, proxy, monkeypatch):
    """The storage `bucket` as it is seen through the proxy, with an object; a stall is found in
    half a second, and no test waits for a pause.
    """
    bucket.put("a", BODY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr(pace, "pause", lambda tries: 0.01)
    monkeypatch.setattr(s3, "_tokens", pace.Bucket())
    return s3.S3(bucket.bucket, bucket.prefix, patience=0.5)


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "short", "fewer", "stall", "lost"])
def test_a_read_that_fails_once_is_made_once_more(through, proxy, fault):
    proxy.faults.append(("GET", fault))
    assert through.get_range("a", 0, 300_000) == BODY
    assert dict(proxy.seen) == {"GET": 2}
    assert (s3._tokens.rate() < 10) == (fault == "503")


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "lost"])
@pytest.mark.parametrize("verb", ["PUT", "HEAD", "DELETE"])
def test_other_requests_are_made_once_more(through, proxy, verb, fault):
    proxy.faults.append((verb, fault))
    through.put("b", b"body")
    assert through.head("b").size == 4
    through.delete("b")
    assert dict(proxy.seen) == {**dict.fromkeys(("PUT", "HEAD", "DELETE"), 1), verb: 2}
    assert through.head("b") is None


@pytest.mark.parametrize("fault", ["short", "stall", "500", "reset"])
def test_a_list_is_whole_or_asked_again(through, proxy, fault):
    through.put("b", b"")
    proxy.faults.append(("GET", fault))
    assert list(through.list("")) == ["a", "b"]
    assert proxy.seen["GET"] == 2


@pytest.mark.parametrize("page", [1, 3, 7])
def test_a_list_has_pages(through, proxy, monkeypatch, page):
    """Also where the server's order is another one, and folders lie between."""
    names = sorted(f"{'abc'[i % 3]}{'/-.'[i % 2]}{i}/x" for i in range(10))
    for name in names:
        through.put(name, b"")
    monkeypatch.setattr(s3, "PAGE", page)
    proxy.faults.append(("GET", "reset"))
    assert list(through.list("")) == ["a", *names]
    assert proxy.seen["GET"] >= 11 // page + 1


def test_a_server_that_fails_on_is_given_up(through, proxy):
    """After eight tries, in one sentence."""
    proxy.faults += [("GET", "500")] * 20
    with pytest.raises(OSError) as error:
        through.get_range("a", 0, 9)
    assert proxy.seen["GET"] == 8
    url = f"s3://{through.bucket}/{through.prefix}a"
    assert error.value.strerror == "the server answered 500 InternalError, 8 times"
    assert (error.value.errno, error.value.filename) == (errno.EIO, url)
    proxy.faults[:] = [("GET", "stall")] * 8
    begun = time.monotonic()
    with pytest.raises(OSError, match="did not answer"):
        through.get_range("a", 0, 300_000)
    assert 4 <= time.monotonic() - begun < 30 and proxy.seen["GET"] == 16


def test_what_no_retry_mends_is_asked_once(through, proxy, monkeypatch):
    tag = through.head("a").tag
    through.put("a", b"another")
    wrong = s3.S3(through.bucket, patience=0.5)
    with pytest.raises(FileNotFoundError, match="no such bucket: 's3://vtx-nowhere'"):
        s3.S3("vtx-nowhere").get_range("a", 0, 9)
    proxy.seen.clear()
    with pytest.raises(FileNotFoundError, match="no such object"):
        through.get_range("b", 0, 9)  # 404
    with pytest.raises(Changed):
        through.get_range("a", 0, 9, tag)  # 412
    assert through.replace_if("b", b"", "tag") is None
    assert not through.put_if_absent("a", b"")  # 412
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(PermissionError, match="403 SignatureDoesNotMatch"):
        wrong.get_range("a", 0, 9)
    assert proxy.seen["GET"] == 3
    assert through.get_range("a", 99, 9) == b""  # 416, and whether it is there
    assert proxy.seen["GET"] == 4


@pytest.mark.parametrize("fault", ["lost", "reset", "500"])
def test_who_stored_an_object_knows_it(through, proxy, fault):
    """Though the answer was lost, and the second try was refused because of the first."""
    proxy.faults.append(("PUT", fault))
    assert through.put_if_absent("b", b"body")
    assert proxy.seen["PUT"] == 2
    proxy.faults.append(("PUT", fault))
    assert not through.put_if_absent("b", b"body"), "the same content, of another call"
    proxy.faults.append(("PUT", fault))
    tag = through.replace_if("b", b"next", through.head("b").tag)
    assert tag == through.head("b").tag and through.get_range("b", 0, 9) == b"next"
    proxy.faults.append(("PUT", fault))
    assert through.replace_if("b", b"next", "another") is None


@pytest.mark.parametrize("fault", ["lost", "reset", "500", "503"])
@pytest.mark.parametrize("verb", ["POST", "PUT"])
def test_a_file_in_parts_survives_a_fault(through, proxy, tmp_path, verb, fault):
    """POST begins an upload and ends it: both fail once, as does a part."""
    body = os.urandom((17 << 20) + 3)
    (tmp_path / "file").write_bytes(body)
    proxy.faults.append((verb, fault))
    begun = through._ask

    def ask(do):
        if verb == "POST" and proxy.seen["PUT"] == 3 and not proxy.faults:
            proxy.faults.append(("POST", fault))  # and the end of it
        return begun(do)

    through._ask = ask
    through.put_file("b", tmp_path / "file")
    through._ask = begun
    assert through.get_range("b", 0, len(body)) == body
    ended = proxy.seen["POST"] - 3, proxy.seen["PUT"] - 3
    if verb == "PUT":
        assert ended == (-1, 1)
    else:  # some know an upload no more that they have ended, and say so by an error
        assert ended[0] == 1 or fault == "lost" and ended[0] <= 3
        assert ended[1] == 0


def test_a_file_that_cannot_be_sent_leaves_nothing(through, proxy, served, tmp_path):
    """No object, no parts; and the file is still there."""
    (tmp_path / "file").write_bytes(bytes(9 << 20))
    proxy.faults += [("PUT", "500")] * 16
    with pytest.raises(OSError, match="500 InternalError, 8 times"):
        through.put_file("b", tmp_path / "file")
    assert (tmp_path / "file").exists() and through.head("b") is None
    uploads = (
        served[0].client().list_multipart_uploads(Bucket=through.bucket, Prefix=through.prefix)
    )
    assert not uploads.get("Uploads")


@pytest.mark.parametrize("unquoted", [False, True])
def test_a_server_that_wants_its_tags_bare(bucket, monkeypatch, unquoted):
    """One that refuses If-Match with quotes is asked again without; once, and only where the tag
    is the one.
    """
    bucket.put("a", b"first")
    tag, asked, plain = bucket.head("a").tag, [], s3.S3._put

    def put(self, name, body, mark="", **only):
        asked.append(only["IfMatch"])
        bare = only["IfMatch"] == tag
        return plain(self, name, body, mark, IfMatch=tag if bare or not unquoted else "never")

    monkeypatch.setattr(s3.S3, "_put", put)
    assert bucket.replace_if("a", b"second", tag) == bucket.head("a").tag != tag
    assert asked == ([f'"{tag}"', tag] if unquoted else [f'"{tag}"'])
    asked.clear()
    assert bucket.replace_if("a", b"third", tag) is None and asked == [f'"{tag}"']


def chain(error):
    """An error, what it came from, and all that they carry."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.__dict__), repr(error.args))
        error = error.__cause__ or error.__context__


def test_keys_are_in_no_text(through, proxy, monkeypatch, served):
    """Access key, secret and session token; at the lowest level of logging."""
    planted = [served[0].key, served[0].secret, "token" + secrets.token_hex(20)]
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    logging.root.addHandler(handler)
    texts = []

    def fails(do, must=True):
        try:
            do()
            assert not must
        except OSError as e:
            texts.extend(chain(e))
            texts.append("".join(traceback.format_exception(e)))

    try:
        through.put("b", b"")
        fails(lambda: through.open("c"))
        proxy.faults += [("GET", "reset")] * 8
        fails(lambda: through.get_range("a", 0, 9))
        proxy.faults += [("PUT", "500")] * 8
        fails(lambda: through.put("b", b""))
        monkeypatch.setenv("AWS_SESSION_TOKEN", planted[2])
        known = s3.S3(through.bucket, patience=0.5)
        fails(lambda: known.put("b", b""), must=False)  # Ceph does not look at the token
        monkeypatch.delenv("AWS_SESSION_TOKEN")
        planted.append("AKIA" + secrets.token_hex(8))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", planted[-1])
        fails(lambda: s3.S3(through.bucket, patience=0.5).put("b", b""))
    finally:
        logging.root.removeHandler(handler)
    texts += [out.getvalue(), repr(through), repr(through.__getstate__())]
    assert out.getvalue(), "nothing was logged at all"
    for key in planted:
        assert not [text for text in texts if key in text]


def test_no_credentials_are_said_plainly(monkeypatch):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(PermissionError, match="no credentials for AWS were found"):
        s3.S3("bucket").put("a", b"")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:verysecret@bucket/x",
        "s3://verysecret@bucket/x",
        "s3://bucket/x?token=verysecret",
        "s3://bucket/x#verysecret",
        "s3://[verysecret/x",
        "s3:///verysecret",
        "s3://verysecret:9/x",
        "https://bucket/verysecret",
        "verysecret",
    ],
)
def test_a_url_is_a_bucket_and_a_prefix(url):
    with pytest.raises(ValueError, match="s3://bucket/prefix") as error:
        s3.S3.at(url)
    assert "verysecret" not in "".join([*chain(error.value)])


@pytest.mark.parametrize(
    "url", ["http://key:verysecret@h:1", "http://h/?k=verysecret", "verysecret"]
)
def test_an_endpoint_is_an_address_alone(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    with pytest.raises(OSError, match="AWS_ENDPOINT_URL_S3 .* must be http") as error:
        s3.S3("bucket").head("a")
    assert "verysecret" not in "".join([*chain(error.value)])


def test_where_a_bucket_lies(monkeypatch):
    """Paths where an endpoint is set, the region of the environment, who pays."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = s3.S3.at("s3://bucket/a//b/", requester_pays=True)
    assert repr(storage) == "S3('s3://bucket/a//b/')"
    made = storage._client()
    assert made.meta.region_name == "eu-west-3"
    url = made.generate_presigned_url("get_object", storage._at("x y"))
    assert re.match(r"http://127\.0\.0\.1:9/bucket/a//b/x%20y\?", url)
    assert storage._at("x")["RequestPayer"] == "requester" and "RequestPayer" not in s3.S3(
        "bucket"
    )._at("x")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    url = s3.S3("bucket")._client().generate_presigned_url("get_object", s3.S3("bucket")._at("x"))
    assert re.match(r"https://bucket\.s3\.([\w-]+\.)?amazonaws\.com/x\?", url)


def test_an_endpoint_of_a_profile(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile p]\nendpoint_url = http://storage.example:9\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "p")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = s3.S3("bucket")
    url = storage._client().generate_presigned_url("get_object", storage._at("x"))
    assert url.startswith("http://storage.example:9/bucket/x?")


def test_a_fork_makes_its_own_client(monkeypatch):
    """Two processes on one connection would read each other's answers."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    storage = s3.S3("bucket")
    made = storage._client()
    assert storage._client() is made
    child = os.fork()
    if not child:
        os._exit(storage._client() is made)
    assert os.waitpid(child, 0)[1] == 0


def test_pauses_are_spread_below_a_bound_that_grows():
    for tries, bound in ((1, 0.1), (2, 0.2418), (4, 1.414), (6, 8.271), (7, 20.0), (9, 20.0)):
        drawn = [pace.pause(tries) for _ in range(400)]
        assert 0 <= min(drawn) < 0.1 * bound and 0.9 * bound < max(drawn) < 1.001 * bound


class Clock:
    """Time that passes where one sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def asked_in(tokens, clock, seconds):
    count, end = 0, clock.now + seconds
    while clock.now < end:
        tokens.take()
        clock.sleep(0.01)
        count += 1
    return count


def test_a_server_that_is_asked_too_much_is_asked_half_as_often():
    clock = Clock()
    tokens = pace.Bucket(clock, clock.sleep)
    before = asked_in(tokens, clock, 3)
    assert before >= 290, "no limit until then"
    for _ in range(64):
        tokens.halve()  # as many threads are told at once
    assert 100 < asked_in(tokens, clock, 3) <= 0.6 * before
    for _ in range(12):
        clock.sleep(1)
        tokens.halve()
    assert tokens.rate() == 4
    clock.sleep(600)
    assert asked_in(tokens, clock, 3) >= 290, "and after a while as before"
