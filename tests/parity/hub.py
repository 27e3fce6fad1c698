"""A stand-in of the Hugging Face Hub's HTTP API on loopback: what an upload asks for."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stand_in_of_a_token"


class Hub:
    """files: repository -> path -> bytes. private: repository -> whether it is. full: it takes
    nothing more.
    """

    def __init__(self):
        self.files, self.private, self.blobs = {}, {}, {}
        self.messages, self.full = [], False

    def answer(self, method, path, body):
        """(status, JSON)."""
        path = path.partition("?")[0]
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": [], "auth": {}}
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")
            whole = len(front) > 2 and not front[0]
            return 200, {"errors": [] if whole else [{"message": "no front"}], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.files:
                return 409, {"error": "You already created it", "url": f"{self.url}/{name}"}
            self.files[name] = {}
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            ways = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            return 200, {
                "files": [
                    {"path": name, "uploadMode": way, "shouldIgnore": False}
                    for name, way in zip(names, ways, strict=True)
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**x, "actions": {"upload": {"href": f"{self.url}/blobs/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/blobs/"):
            if hashlib.sha256(body).hexdigest() != path.rpartition("/")[2]:
                return 422, {"error": "not what was announced"}
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}
        if "/commit/" in path:
            return self.commit("/".join(path.split("/")[3:5]), body)
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.files:
                return 404, {"error": "Repository not found"}
            return 200, {"id": name, "modelId": name, "siblings": [], "sha": "0" * 40}
        return 404, {"error": path}

    def commit(self, name, body):
        if self.full:
            return 403, {"error": "Private repository storage limit reached"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[name][value["path"]] = self.blobs[value["oid"]]
        return 200, {
            "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}",
            "commitOid": "0" * 40,
            "success": True,
        }


@contextlib.contextmanager
def served():
    """A Hub with nothing in it, which knows TOKEN alone; its `url`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def take(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if signed or self.path.startswith("/blobs/"):
                status, found = hub.answer(self.command, self.path, body)
            else:
                status, found = 401, {"error": "Invalid user token."}
            sent = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = take

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
