"""rankpo serve: what it answers, to whom, and how the page follows a run that trains."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from rankpo.report.compare import Searcher
from rankpo.report.page import Content
from rankpo.report.runs import open_runs
from rankpo.report.serve import Live, allowed_hosts, is_loopback, make_server
from tests.browser import Page
from tests.report.world import write_training


class Ten(Searcher):
    """Two models with fixed hits, and a text that would be HTML."""

    def __init__(self) -> None:
        self.indexes = ()

    def __call__(self, query: str) -> dict:
        if not query.strip():
            raise ValueError("the query is empty")
        hits = [{"id": f"d{n}", "text": f"<b>nurse</b> {n}", "score": 1 / n, "rank": n} for n in (1, 2)]
        other = [{"id": "d2", "text": "<b>nurse</b> 2", "score": 0.5, "rank": 1}]
        return {
            "models": [{"name": "a", "colour": "red", "hits": hits}, {"name": "b", "colour": "blue", "hits": other}]
        }


@contextmanager
def served(folder: Path, searcher: Searcher | None = None):
    """A server on a free port for as long as the block lasts: its port."""
    live = Live(lambda: Content(title="t", runs=open_runs([str(folder)])), [folder], title="<Live> & co", seconds=0.2)
    server = make_server(live, searcher, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


@pytest.fixture
def run(tmp_path) -> Path:
    write_training(tmp_path / "run", {"seed": 1}, [2.0, 1.5], [])
    return tmp_path / "run"


def test_the_page_and_its_content(run):
    with served(run) as port:
        status, headers, page = ask(port, "/")
        assert status == 200 and "&lt;Live&gt; &amp; co" in page and 'data-live="0.2"' in page
        assert "connect-src 'self'" in page and headers["X-Content-Type-Options"] == "nosniff"
        status, headers, main = ask(port, "/main")
        assert status == 200 and "2 updates so far" in main
        version = headers["X-Version"]
        assert ask(port, f"/main?version={version}")[0] == 204, "nothing new: nothing is sent"
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "time": 3.0, "train/loss": 1.0}\n{"step": 4, "ti')
        status, headers, main = ask(port, f"/main?version={version}")
        assert status == 200 and "3 updates so far" in main and headers["X-Version"] != version


def test_a_run_without_metrics_yet(tmp_path):
    with served(tmp_path) as port:
        assert "Nothing to show yet" in ask(port, "/main")[2]
        write_training(tmp_path / "later", {}, [1.0], [])
        (tmp_path / "later" / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
        assert "1 updates so far" in ask(port, "/main")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/../run/config.json",
        "/run/config.json",
        "/config.json",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/main/..",
        "/search",
    ],
)
def test_no_other_address_is_answered(run, path):
    with served(run) as port:
        assert ask(port, path)[::2] == (404, "not found")


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost:{port}.example.org"]
)
def test_another_host_is_refused(run, host):
    """A name that somebody else's page points at this machine."""
    with served(run) as port:
        assert ask(port, "/main", host=host.format(port=port) or " ")[0] == 403
        assert ask(port, "/main", host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_get_is_answered(run, method):
    with served(run) as port:
        assert ask(port, "/main", method)[0] == 501


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "example.org", "::")))
    assert allowed_hosts("10.0.0.1", 8000) == {"10.0.0.1:8000"}


def test_search_answers_json(run):
    with served(run, Ten()) as port:
        status, headers, body = ask(port, "/search?q=nurse")
        assert status == 200 and headers["Content-Type"].startswith("application/json")
        assert [model["name"] for model in json.loads(body)["models"]] == ["a", "b"]
        assert ask(port, "/search?q=")[::2] == (400, '{"error": "the query is empty"}')


def test_the_page_follows_a_run(run, tmp_path):
    """In a browser: a new line of metrics appears, and what the reader switched off stays off."""
    with served(run) as port, Page(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.body.innerText.includes('2 updates so far')")
        page.js("document.querySelector('details')?.setAttribute('open', '')")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "time": 3.0, "train/loss": 1.0}\n')
        page.wait("document.body.innerText.includes('3 updates so far')")
        assert page.js("document.getElementById('live').textContent").startswith("live")
        assert page.errors == []


def test_two_models_side_by_side(run, tmp_path):
    searcher = Ten()
    searcher.indexes = [type("Named", (), {"name": name}) for name in ("a", "b")]
    with served(run, searcher) as port, Page(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.write("#search-query", "nurse")
        page.click("#search button")
        page.wait("document.querySelectorAll('#search-result li').length === 3")
        first, second, third = page.js(
            "[...document.querySelectorAll('#search-result li')].map(item => item.innerText)"
        )
        assert "b: not among its 1" in first and "b: rank 1" in second and "a: rank 2" in third
        assert "<b>nurse</b> 1" in first, "texts are shown as they are"
        assert page.js("document.querySelector('#search-result mark').textContent") == "nurse"
        assert page.errors == []
