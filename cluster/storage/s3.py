"""A bucket of S3 as a storage."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
import urllib.parse
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config

from vtx_scale.cluster.storage import pace
from vtx_scale.cluster.storage.faults import Fault, Misconfigured, error_of, fault_of
from vtx_scale.data_pipeline.storage import Changed, Head

PATIENCE = 20.0  # seconds without any progress, then a request is made again
PART = 8 << 20  # bytes: a file above this is sent in parts
PARTS = 10_000  # of one object at most
PAGE = 1000  # names of an answer
TOGETHER = 8  # parts on their way at the same time
FIRST = 64 << 10  # bytes that are read when an object is opened
MARK = "vtx-put"  # metadata: which call stored an object
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# their lines at level DEBUG hold signed headers, session tokens among them
for noisy in ("botocore", "boto3", "urllib3"):
    logging.getLogger(noisy).setLevel(logging.INFO)

_tokens = pace.Bucket()
_making = threading.Lock()
_process = object()  # stands for this process: another one after a fork


def _forked() -> None:
    global _tokens, _making, _process
    _tokens, _making, _process = pace.Bucket(), threading.Lock(), object()


os.register_at_fork(after_in_child=_forked)


@dataclass(frozen=True)
class Reply:
    """How a request ended: its value, or the fault of its last try; and after how many tries."""

    value: Any
    fault: Fault | None
    tries: int


class Short(OSError):
    """An answer had fewer bytes than it said."""


class S3:
    """The objects below a prefix of a bucket as a `Storage`.

    Keys, region and endpoint come from where they always do (`AWS_ACCESS_KEY_ID`, a profile, the
    machine's role; `AWS_ENDPOINT_URL_S3`); none is kept here, and no error names one. It can be
    pickled: each process makes a client of its own.

    A request that was not answered, or with 5xx, 409 or 429, is made again, 8 times in all, after
    pauses of full jitter below 0.1 s to 20 s; so is one that makes no progress for `patience`
    seconds, and a body that ends too early. Where a server says 503, all of this process ask half
    as often. Errors are FileNotFoundError, PermissionError (401, 403, no credentials), `Changed`
    (412), and OSError.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        requester_pays: bool = False,
        region: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """prefix: of all names, a folder. requester_pays: this account pays for the transfer.
        region: where the environment does not say it. patience: in seconds.
        """
        prefix = prefix.strip("/")
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.region, self.patience = region, patience
        self._payer = {"RequestPayer": "requester"} if requester_pays else {}
        self._made: tuple[object, Any] | None = None

    @classmethod
    def at(cls, url: str, requester_pays: bool = False) -> Self:
        """The storage of `s3://bucket/prefix`. Raises ValueError, with a sentence, for anything
        else, also where a user or a query stands in it: keys are not given so.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            plain = parts.scheme == "s3" and not (parts.query or parts.fragment)
        except ValueError:
            plain = False
        if not plain or not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", parts.netloc):
            raise ValueError("A bucket is named s3://bucket/prefix; keys do not stand in it.")
        return cls(parts.netloc, parts.path, requester_pays)

    def __repr__(self) -> str:
        return f"S3({self._url('')!r})"

    def __str__(self) -> str:
        return self._url("").rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        """`length` bytes from byte `offset` on, fewer where the object ends before.

        tag: of the object that is meant, any if None. Raises FileNotFoundError where there is no
        such object, `Changed` where it has another tag.
        """
        if length <= 0:
            self._found(name, tag)
            return b""
        return self._get(name, offset, length, tag)[0]

    def open(self, name: str) -> "Opened":
        """An object, to be read in ranges by requests that name its tag; its first 64 KiB are read
        now, so that a smaller one stays what it was whatever becomes of its name.

        Raises FileNotFoundError where there is no such object.
        """
        start, size, tag = self._get(name, 0, FIRST, None)
        return Opened(self, name, Head(size, tag), start)

    def put(self, name: str, body: bytes) -> None:
        """Store an object whole, in one request, in place of one of that name."""
        self._value(self._put(name, body), name)

    def put_file(self, name: str, path: Path) -> None:
        """Store a local file whole, in place of an object of that name; the file is gone then.

        Above 8 MiB it is sent in parts, 8 at a time, and appears when all are there. This is never
        conditional: there are servers that then overwrite all the same. What an upload that was
        killed has sent stays hidden in the bucket until a rule of its removes it.
        """
        size = path.stat().st_size
        if size <= PART:
            self.put(name, path.read_bytes())
        else:
            with path.open("rb") as file:
                self._put_parts(name, file.fileno(), size)
        path.unlink()

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path in a temporary folder of its own."""
        with tempfile.TemporaryDirectory(prefix="vtx-s3-") as folder:
            yield Path(folder) / "file"

    def put_if_absent(self, name: str, body: bytes) -> bool:
        """Store an object where there is none of that name; whether it was stored.

        A try may store it and its answer be lost: the next one then finds an object. Each call
        marks what it stores (metadata `vtx-put`), so that it knows its own. Where another process
        replaced or removed the object in between, this says False of one that it had stored. Raises
        OSError where no try was answered: then it may be stored or not.
        """
        mark = uuid.uuid4().hex
        reply = self._put(name, body, mark, IfNoneMatch="*")
        if reply.fault and reply.fault.status == 412:
            return reply.tries > 1 and self._ours(name, mark)
        self._value(reply, name)
        return True

    def replace_if(self, name: str, body: bytes, tag: str) -> str | None:
        """Store an object in place of the one that has this tag; the new tag, or None where it is
        gone or has another.

        An answer that was lost is found out as by `put_if_absent`. Some servers know their tag
        only without the quotes that they send it in: a refusal is asked about once more so.
        """
        mark = uuid.uuid4().hex
        for said in (f'"{tag}"', tag):
            reply = self._put(name, body, mark, IfMatch=said)
            if not reply.fault:
                return tag_of(reply.value)
            if reply.fault.status == 404 and reply.fault.code != "NoSuchBucket":
                return None
            if reply.fault.status != 412:
                self._value(reply, name)
            answer = self._head(name)
            if answer is None:
                return None
            if answer["Metadata"].get(MARK) == mark:
                return tag_of(answer)
            if tag_of(answer) != tag:
                return None
        return None

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, in order of their bytes, which is not every
        server's own.
        """
        names: list[str] = []
        asked = {"Bucket": self.bucket, "Prefix": f"{self.prefix}{prefix}", "MaxKeys": PAGE}
        asked |= self._payer
        while True:
            reply = self._ask(lambda client: client.list_objects_v2(**asked))
            page = self._value(reply, prefix)
            names += [entry["Key"] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
        # what ends in a slash marks a folder for a browser of buckets
        yield from sorted(n[len(self.prefix) :] for n in names if not n.endswith("/"))

    def head(self, name: str) -> Head | None:
        """Size and tag (the ETag without its quotes) of an object, None where there is none."""
        answer = self._head(name)
        return Head(answer["ContentLength"], tag_of(answer)) if answer else None

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        reply = self._ask(lambda client: client.delete_object(**self._at(name)))
        if not (reply.fault and reply.fault.code == "NoSuchKey"):
            self._value(reply, name)

    def _head(self, name: str) -> dict[str, Any] | None:
        reply = self._ask(lambda client: client.head_object(**self._at(name)))
        if reply.fault and reply.fault.status == 404:
            return None
        found: dict[str, Any] = self._value(reply, name)
        return found

    def _found(self, name: str, tag: str | None) -> Head:
        head = self.head(name)
        if head is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self._url(name))
        if tag is not None and head.tag != tag:
            raise Changed(errno.ESTALE, "the object is another by now", self._url(name))
        return head

    def _ours(self, name: str, mark: str) -> bool:
        """Whether it was the call of this mark that stored an object."""
        answer = self._head(name)
        return answer is not None and answer["Metadata"].get(MARK) == mark

    def _get(self, name: str, offset: int, length: int, tag: str | None) -> tuple[bytes, int, str]:
        """Bytes of a range, the size of the object, and its tag."""
        asked = {**self._at(name), "Range": f"bytes={offset}-{offset + length - 1}"}
        if tag is not None:
            asked["IfMatch"] = f'"{tag}"'

        def read(client: Any) -> tuple[bytes, int, str]:
            answer = client.get_object(**asked)
            with closing(answer["Body"]) as stream:
                size = size_of(answer, offset)
                body: bytes = stream.read() if size >= 0 else b""
            if len(body) != min(length, size - offset) and size >= 0:
                raise Short
            return body, size, tag_of(answer)

        reply = self._ask(read)
        if reply.fault and reply.fault.status == 416:  # nothing there: beyond the end
            head = self._found(name, tag)
            return b"", head.size, head.tag
        body, size, seen = self._value(reply, name)
        if size < 0:
            raise OSError(errno.EIO, "the server does not answer ranges", self._url(name))
        if tag is not None and seen != tag:
            raise Changed(errno.ESTALE, "the object is another by now", self._url(name))
        return body, size, seen

    def _put(self, name: str, body: bytes, mark: str = "", **only: str) -> Reply:
        """One request that stores an object; only: its conditions."""
        marked = {"Metadata": {MARK: mark}} if mark else {}
        arguments = {**self._at(name), **marked, **only, "ContentMD5": md5(body)}
        return self._ask(lambda client: client.put_object(Body=body, **arguments))

    def _put_parts(self, name: str, fd: int, size: int) -> None:
        mark = uuid.uuid4().hex
        begin = {**self._at(name), "Metadata": {MARK: mark}}
        begun = self._ask(lambda client: client.create_multipart_upload(**begin))
        upload = {**self._at(name), "UploadId": self._value(begun, name)["UploadId"]}
        step = max(PART, -(-size // PARTS))

        def send(number: int) -> dict[str, Any]:
            body = read_at(fd, number * step, min(step, size - number * step))
            part = {**upload, "PartNumber": number + 1, "ContentMD5": md5(body)}
            reply = self._ask(lambda client: client.upload_part(Body=body, **part))
            return {"PartNumber": number + 1, "ETag": self._value(reply, name)["ETag"]}

        pool = ThreadPoolExecutor(TOGETHER, "vtx-s3")
        try:
            parts = list(pool.map(send, range(-(-size // step))))
            ended = {**upload, "MultipartUpload": {"Parts": parts}}
            reply = self._ask(lambda client: client.complete_multipart_upload(**ended))
            # its answer was lost, and the upload is no more
            if not (reply.fault and reply.tries > 1 and self._ours(name, mark)):
                self._value(reply, name)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with contextlib.suppress(Exception):  # one try: whoever stops a run waits for it
                self._client().abort_multipart_upload(**upload)
            raise
        finally:
            pool.shutdown()

    def _at(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}{name}", **self._payer}

    def _url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def _client(self) -> Any:
        """This process's client."""
        with _making:
            if self._made is None or self._made[0] is not _process:
                self._made = _process, client(self.region, self.patience)
            return self._made[1]

    def _ask(self, do: Callable[[Any], Any]) -> Reply:
        """What `do` returns of a client, after as many tries as it takes."""
        for tries in range(1, pace.TRIES + 1):
            _tokens.take()
            try:
                return Reply(do(self._client()), None, tries)
            except Exception as e:
                fault = fault_of(e)
                if fault is None:
                    raise
            # out of the handler: what is raised from here on carries no error of boto3 along
            if fault.status == 503:
                _tokens.halve()
            if not fault.again:
                break
            if tries < pace.TRIES:
                time.sleep(pace.pause(tries))
        return Reply(None, fault, tries)

    def _value(self, reply: Reply, name: str) -> Any:
        """What a request gave. Raises OSError for its fault."""
        if reply.fault is None:
            return reply.value
        raise error_of(reply.fault, reply.tries, self._url(name))


class Opened:
    """An object of a bucket that was opened: what is read is what it was then, or `Changed`."""

    def __init__(self, storage: S3, name: str, head: Head, start: bytes) -> None:
        """start: its first bytes."""
        self.storage, self.name, self.size, self.tag = storage, name, head.size, head.tag
        self._start = start

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises OSError where the object ends before, is another by now or
        cannot be read.
        """
        if offset + length > self.size:
            url = self.storage._url(self.name)
            raise OSError(errno.EIO, f"the object ends at byte {self.size}", url)
        if offset + length <= len(self._start):
            return self._start[offset : offset + length]
        return self.storage.get_range(self.name, offset, length, self.tag)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out`, bytes, from byte `offset` on. Raises OSError as `read` does."""
        out[:] = self.read(offset, len(out))

    def close(self) -> None:
        """Nothing is held: it can be read until its name goes away."""


def client(region: str | None, patience: float) -> Any:
    """A client of boto3 that tries once, as this environment configures it.

    Raises OSError where the endpoint is no address alone.
    """
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    if endpoint and not re.fullmatch(r"https?://[^@?#\s]+", endpoint):
        sentence = f"{' or '.join(ENDPOINTS)} must be http://host:port or https://host:port"
        raise Misconfigured(errno.EINVAL, f"{sentence}, without a user or a query")
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.session.Session(region_name=region or ("us-east-1" if endpoint else None))
    if not endpoint:
        found = session.client("s3", config=settings(patience, "auto"))
        host = urllib.parse.urlsplit(found.meta.endpoint_url).hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return found
    # an endpoint of the environment, or of a profile
    return session.client("s3", endpoint_url=endpoint or None, config=settings(patience, "path"))


def settings(patience: float, style: str) -> Config:
    """What a client is made with; style: where the bucket stands in an address."""
    return Config(
        connect_timeout=min(5.0, patience),
        read_timeout=patience,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=64,
        tcp_keepalive=True,
        s3={"addressing_style": style},
        # Content-MD5 is what all servers check
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def tag_of(answer: dict[str, Any]) -> str:
    """The ETag of an answer, without quotes."""
    return str(answer["ETag"]).strip('"')


def size_of(answer: dict[str, Any], offset: int) -> int:
    """The size of the object of which an answer holds a range, -1 where it holds another."""
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", ""))
    if said is None or int(said[1]) != offset:
        return -1
    return int(said[2])


def md5(body: bytes) -> str:
    """The digest by which a server knows that it got what was sent."""
    return b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Exactly these bytes of a local file. Raises OSError where it ends before."""
    body = os.pread(fd, length, offset)
    if len(body) != length:
        raise OSError(errno.EIO, f"the file ends at byte {offset + len(body)}")
    return body
