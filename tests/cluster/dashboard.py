"""A dashboard of Ray on this machine's loopback that answers as a test has it: as one does whose
GCS is away, or with what it knows of jobs.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Dashboard:
    """status: of every answer on jobs, 0 for the true one. body: of answers that are none. jobs: id
    -> Ray's word. loses: a submission is taken, and its answer lost.
    """

    def __init__(self) -> None:
        self.address, self.status, self.body = "", 0, "ray.exceptions: GCS is unavailable"
        self.jobs: dict[str, str] = {}
        self.loses = False

    def answer(self, path: str, submitted: str) -> tuple[int, str]:
        """HTTP status and body."""
        if path == "/api/version":
            return 200, json.dumps({"version": "4", "ray_version": "2.50.0"})
        if submitted and (self.loses or not self.status):
            self.jobs[submitted] = "PENDING"
        if self.status and not (self.loses and not submitted):
            return self.status, self.body
        if submitted:
            return 200, json.dumps({"job_id": submitted, "submission_id": submitted})
        if path.startswith("/api/packages"):
            return 200, "{}"
        id = path.rpartition("/")[2]
        if id not in self.jobs:
            return 404, "no such job"
        return 200, json.dumps(
            {
                "type": "SUBMISSION",
                "submission_id": id,
                "status": self.jobs[id],
                "entrypoint": "python",
                "message": "",
            }
        )


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """One that is there within the block."""
    board = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            id = ""
            if self.command == "POST" and self.path == "/api/jobs/":
                id = json.loads(body)["submission_id"]
            status, text = board.answer(self.path, id)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = handle_one

        def log_message(self, *about: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    board.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield board
    finally:
        server.shutdown()
        server.server_close()
