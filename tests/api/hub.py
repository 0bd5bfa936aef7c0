"""A stand-in for the HTTP interface of a model hub: repositories and commits, in memory."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_stand_in_of_a_token"


class Hub:
    """What was uploaded. files: {repository: {path: contents}}. private: {repository: whether}. messages: of commits.

    header: the YAML at the top of the last card."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.header: dict = {}
        self.url = ""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(404, {"error": "not found"})

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Invalid username or password."})
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif self.path == "/api/validate-yaml":
                header = json.loads(body)["content"].split("---\n")[1]
                hub.header = yaml.safe_load(header)
                self._answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                answers = [{**item, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for item in files]
                self._answer(200, {"files": answers})
            elif "/commit/" in self.path:
                self._commit(self.path.split("/commit/")[0].removeprefix("/api/models/"), body)
            else:
                self._answer(404, {"error": self.path})

        def _create(self, asked: dict) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            existing = name in hub.files
            hub.files.setdefault(name, {})
            hub.private.setdefault(name, asked.get("visibility") == "private")
            self._answer(409 if existing else 200, {"url": f"{hub.url}/{name}", "name": name, "id": name})

        def _commit(self, name: str, body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    hub.messages.append(value["summary"])
                elif line["key"] == "file":
                    hub.files[name][value["path"]] = base64.b64decode(value["content"])
            oid = "0" * 40
            self._answer(
                200,
                {
                    "commitUrl": f"{hub.url}/{name}/commit/{oid}",
                    "commitOid": oid,
                    "pullRequestUrl": None,
                    "success": True,
                },
            )

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))

        def _answer(self, status: int, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Stays silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
