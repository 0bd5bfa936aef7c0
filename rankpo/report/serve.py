"""Server of `rankpo serve`: a report on finished and running runs that updates itself, and a search box.

The server answers only GET requests to /, /main and /search, and never opens a file by the name in a request. It
rejects requests with another Host header, as a protection against DNS rebinding.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from rankpo.report.compare import Searcher
from rankpo.report.page import Content, render_main, render_shell

WATCHED = (
    *("metrics.jsonl", "config.json", "FINAL/rankpo.json", "sweep_job.json", "**/per_query.jsonl", "**/metrics.json"),
    *("*/metrics.jsonl", "*/sweep_job.json", "*statistics.json", "**/report.json", "frontier.json"),
    *("search.json", "*/search.json", "meta.json", "*/meta.json"),
)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}

Respond = Callable[[dict[str, list[str]]], "Answer"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP response. kind: the media type of the body. version: the version of the report's content, for /main."""

    status: HTTPStatus = HTTPStatus.OK
    body: str = ""
    kind: str = "text/html"
    version: str = ""


class Live:
    """A report on changing folders, which is rendered again only after a change.

    read: opens the current runs. folders: watched for changes. seconds: between two requests of the page.
    """

    def __init__(self, read: Callable[[], Content], folders: Sequence[Path], *, title: str, seconds: float) -> None:
        self.read, self.folders, self.title, self.seconds = read, folders, title, seconds
        self._lock = threading.Lock()
        self._version, self._main = "", ""

    def version(self) -> str:
        """Returns a hash of the paths, sizes and modification times of the watched files."""
        digest = hashlib.sha256()
        for folder in self.folders:
            for path in sorted({path for pattern in WATCHED for path in folder.glob(pattern)}):
                try:
                    found = path.stat()
                except FileNotFoundError:  # A restarted run can remove files between the two calls.
                    continue
                digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def main(self) -> tuple[str, str]:
        """Returns the version and the HTML of the page's content."""
        with self._lock:
            version = self.version()
            if version != self._version:
                self._main = self._render()
                self._version = version
            return self._version, self._main

    def _render(self) -> str:
        """Returns the content, or the reason if there is none yet, as for a new run without metrics."""
        try:
            return render_main(self.read())
        # A partly written file raises json.JSONDecodeError, a ValueError.
        except (ValueError, OSError, KeyError) as error:
            return f'<p role="status">Nothing to show yet: {escape(str(error))}</p>'


def make_server(live: Live, searcher: Searcher | None, host: str, port: int) -> ThreadingHTTPServer:
    """Returns a bound server that is not started. port: 0 selects a free port. Raises OSError for a used port."""
    routes: dict[str, Respond] = {"/": partial(_page, live, searcher), "/main": partial(_main, live)}
    if searcher is not None:
        routes["/search"] = partial(_search, searcher)

    class Handler(_Handler):
        pass

    Handler.routes = routes
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    Handler.hosts = allowed_hosts(host, server.server_address[1])
    return server


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """Returns the Host headers that the server accepts."""
    names = {host, "localhost", "127.0.0.1", "[::1]"} if is_loopback(host) else {host}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


def is_loopback(host: str) -> bool:
    """Returns True if `host` is a loopback address, so that only this machine can reach the server."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _page(live: Live, searcher: Searcher | None, _query: dict[str, list[str]]) -> Answer:
    names = [index.name for index in searcher.indexes] if searcher is not None else []
    return Answer(body=render_shell(live.title, "", live=live.seconds, search=names))


def _main(live: Live, query: dict[str, list[str]]) -> Answer:
    version, main = live.main()
    if query.get("version") == [version]:
        return Answer(status=HTTPStatus.NO_CONTENT, version=version)
    return Answer(body=main, version=version)


def _search(searcher: Searcher, query: dict[str, list[str]]) -> Answer:
    try:
        found: object = searcher(query.get("q", [""])[0])
    except ValueError as error:
        body = json.dumps({"error": str(error)})
        return Answer(status=HTTPStatus.BAD_REQUEST, body=body, kind="application/json")
    return Answer(body=json.dumps(found, ensure_ascii=False), kind="application/json")


class _Handler(BaseHTTPRequestHandler):
    """Handler of one request. routes: a function for each address. hosts: the accepted Host headers."""

    routes: ClassVar[dict[str, Respond]] = {}
    hosts: ClassVar[frozenset[str]] = frozenset()
    server_version, sys_version = "rankpo", ""
    timeout = 30  # The server closes a connection after this many seconds without data.

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self.hosts:
            self._send(Answer(status=HTTPStatus.FORBIDDEN, body="another host", kind="text/plain"))
            return
        address = urlsplit(self.path)
        respond = self.routes.get(address.path)
        if respond is None:
            self._send(Answer(status=HTTPStatus.NOT_FOUND, body="not found", kind="text/plain"))
            return
        self._send(respond(parse_qs(address.query)))

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        headers = {**HEADERS, "Content-Type": f"{answer.kind}; charset=utf-8", "Content-Length": str(len(body))}
        if answer.version:
            headers["X-Version"] = answer.version
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if answer.status != HTTPStatus.NO_CONTENT:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Suppresses the log, since the page sends a request every few seconds."""
