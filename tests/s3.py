"""A real S3 server for tests, SeaweedFS on loopback, and a proxy before it that makes faults."""

import contextlib
import ctypes
import glob
import json
import os
import random
import secrets
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.require import WEED, need

PATIENCE = 90.0  # seconds until a server must take a signed request
PORTS = ("master", "volume", "filer", "s3")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and keys that it takes."""

    port: int
    key: str
    secret: str
    pid: int = 0
    host: str = "127.0.0.1"

    def environment(self, port: int = 0) -> dict[str, str]:
        """What a client finds it by, or the proxy at `port`."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{self.host}:{port or self.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self):
        """A bare client of boto3."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.host}:{self.port}",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def bucket(self) -> str:
        """A new bucket, in which an object was put and read."""
        name = f"vtx-{secrets.token_hex(6)}"
        client = self.client()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="ready", Body=b"ready")
                assert client.get_object(Bucket=name, Key="ready")["Body"].read() == b"ready"
                client.delete_object(Bucket=name, Key="ready")
                return name
            except Exception:  # whatever a server says that is not up yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, each another."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def end_with_parent() -> None:
    """In the child: killed by the system when the tests are."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def seaweed(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """SeaweedFS with its data in `folder`, ended by SIGKILL. host: an address of this machine."""
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    user = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings = folder / "s3.json"
    settings.touch(0o600)
    settings.write_text(json.dumps({"identities": [user]}))  # without it nobody is refused
    ports = free_ports(2 * len(PORTS))
    listen = [
        f"-{name}.{kind}={port}"
        for (name, kind), port in zip(
            [(n, k) for n in PORTS for k in ("port", "port.grpc")], ports, strict=True
        )
    ]
    command = [
        str(WEED),
        "server",
        f"-dir={folder}",
        f"-ip={host}",
        f"-ip.bind={host}",
        "-filer",
        "-s3",
        *listen,
        "-s3.port.iceberg=0",  # else both are fixed ports
        "-s3.port.lance=0",
        f"-s3.config={settings}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=200",  # each bucket takes some
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            preexec_fn=end_with_parent,
        )
    try:
        server = Server(ports[PORTS.index("s3") * 2], key, secret, process.pid, host)
        server.bucket()
        yield server
    finally:
        process.kill()
        process.wait()
        for port in ports:
            # written there by the server of any Unix, whatever TMPDIR says
            for left in glob.glob(f"/tmp/seaweedfs-*{port}.sock"):
                os.unlink(left)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[Server]:
    """One server for all tests."""
    need("s3")
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def answer(status: int, code: str) -> bytes:
    """An answer of S3 that says an error."""
    body = f"<Error><Code>{code}</Code><Message>Try again.</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


ERRORS = {
    "500": answer(500, "InternalError"),
    "503": answer(503, "SlowDown"),
    "429": answer(429, "TooManyRequests"),
}


class Proxy(socketserver.ThreadingTCPServer):
    """Hands requests on to a server, one a connection, and makes the faults that it is asked for.

    faults: (verb, kind), each made once, on the next request of that verb: "500", "503" and "429"
    are answered in the server's place; "reset" breaks the connection before the server is asked,
    "lost" after it has done its work; "short" ends an answer in the middle of its body, "stall"
    holds it up there until the client goes; "fewer" answers in good order with half of the bytes,
    "flip" with one bit that is another. share: of the GETs that come, how many have a fault of each
    of `kinds` by chance. seen: how many requests of each verb came; asked: verb and path of each.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, server: Server) -> None:
        super().__init__((server.host, 0), Relay)
        self.target, self.faults, self.seen = (server.host, server.port), [], Counter()
        self.lock, self.port = threading.Lock(), self.server_address[1]
        self.asked: list[tuple[str, str]] = []
        self.share, self.kinds, self.random = 0.0, (), random.Random(0)

    def fault(self, verb: str, path: str = "") -> str:
        with self.lock:
            self.seen[verb] += 1
            self.asked.append((verb, path))
            if self.share and verb == "GET":
                at = int(self.random.random() / self.share)
                if at < len(self.kinds):
                    return self.kinds[at]
            found = next((f for f in self.faults if f[0] == verb), ("", ""))
            if found in self.faults:
                self.faults.remove(found)
            return found[1]


class Relay(socketserver.StreamRequestHandler):
    """One request."""

    server: Proxy

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.relay()

    def relay(self) -> None:
        lines = self.headers()
        if not lines:
            return
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        if "100-continue" in fields.get("expect", ""):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(fields.get("content-length", 0)))
        fault = self.server.fault(*lines[0].split()[:2])
        if fault in ERRORS:
            self.wfile.write(ERRORS[fault])
            return
        if fault == "reset":
            self.reset()
            return
        kept = [x for x in lines if not x.lower().startswith(("expect:", "connection:"))]
        with socket.create_connection(self.server.target) as there:
            there.sendall("\r\n".join([*kept, "Connection: close", "", ""]).encode() + body)
            reply = b"".join(iter(lambda: there.recv(1 << 16), b""))
        if fault == "lost":
            self.reset()
        elif fault == "flip":
            self.wfile.write(reply[:-1] + bytes([reply[-1] ^ 1]))
        elif fault == "fewer":
            head, _, rest = reply.partition(b"\r\n\r\n")
            lines = [x for x in head.split(b"\r\n") if not x.lower().startswith(b"content-length")]
            lines.append(b"Content-Length: %d" % (len(rest) // 2))
            self.wfile.write(b"\r\n".join(lines) + b"\r\n\r\n" + rest[: len(rest) // 2])
        elif fault in ("short", "stall"):
            head, _, rest = reply.partition(b"\r\n\r\n")
            self.wfile.write(head + b"\r\n\r\n" + rest[: len(rest) // 2])
            if fault == "stall":
                self.connection.recv(1)  # until the client gives up
        else:
            self.wfile.write(reply)

    def headers(self) -> list[str]:
        lines = []
        while line := self.rfile.readline().decode("latin-1").rstrip("\r\n"):
            lines.append(line)
        return lines

    def reset(self) -> None:
        """The other end sees a reset, no end of the stream."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    """A proxy before the server, for a test."""
    with Proxy(server) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def s3_bucket(s3_server) -> tuple[Server, str]:
    """The server and one bucket for all tests: each takes seven volumes."""
    return s3_server, s3_server.bucket()


def on_servers(*more):
    """Parameters of a fixture: `more`, and the fixtures that give a server and a bucket."""
    weed = pytest.param("s3_bucket", marks=(pytest.mark.services, pytest.mark.slow))
    return [*more, weed, pytest.param("ceph_bucket", marks=pytest.mark.full)]


def prefix_of(server: Server, bucket: str, monkeypatch):
    """An empty prefix of a bucket as a storage, from here on in the environment."""
    from vtx_scale.cluster.storage.s3 import S3

    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return S3(bucket, f"some/{secrets.token_hex(6)}")
