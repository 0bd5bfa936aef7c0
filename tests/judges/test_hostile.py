"""Judge servers that mean harm: slow, endless, broken, nested, lying about costs, repeating the key."""

from __future__ import annotations

import gzip
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from rankpo.errors import ConfigError
from rankpo.judges import transport
from rankpo.judges.base import JudgeFailed, JudgeStopped, Reply
from rankpo.judges.records import Records
from rankpo.judges.server import ServerJudge
from rankpo.judges.templates import Template
from rankpo.judges.transport import retry_after
from rankpo.judges.verdicts import Unparsable, Verdict, parse
from tests.judges.server import Handler, serving
from tests.judges.test_annotate import files, output, overrides, preferences  # noqa: F401
from tests.runs import train
from tests.starts import ROOT

TEMPLATE = Template(prompt="{query}{passage_a}{passage_b}")
KEY = "sk/AbC+1234567890=="
Answering = Callable[[Any], None]


@contextmanager
def server(send: Callable[[Callable[[bytes], None]], None]) -> Iterator[str]:
    """A raw server: `send` writes its whole answer, byte by byte if it likes."""

    class Raw(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            with suppress(OSError):
                send(self.request.sendall)

    class Threaded(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Threaded(("127.0.0.1", 0), Raw) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
        running.shutdown()


def judge(url: str, **more: Any) -> ServerJudge:
    return ServerJudge(base_url=url, model="m", template=TEMPLATE, **{"max_retries": 0, "timeout": 5, **more})


def ask(url: str, **more: Any) -> Reply:
    asked = judge(url, **more)
    try:
        return asked.ask(asked.request("q", "a", "b"))
    finally:
        asked.close()


def completion(text: str, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}], **more}).encode()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def failing(body: bytes, *headers: str, **more: Any) -> str:
    with server(lambda send: send(whole(body, *headers))) as url, pytest.raises(JudgeFailed) as caught:
        ask(url, **more)
    return str(caught.value)


# the exchange


@pytest.mark.parametrize("slow_from", [0, 20], ids=["head", "body"])
def test_one_byte_at_a_time_ends_at_the_deadline_of_the_whole_call(slow_from):
    content = whole(completion("Preferred: A") + b" " * 4000)

    def send(write: Callable[[bytes], None]) -> None:
        write(content[:slow_from])
        for place in range(slow_from, len(content)):
            write(content[place : place + 1])
            time.sleep(0.1)

    started = time.monotonic()
    with server(send) as url, pytest.raises(JudgeFailed, match=r"no answer within 1 s"):
        ask(url, timeout=1)
    assert time.monotonic() - started < 5


def test_an_endless_body_is_left(monkeypatch):
    sent = []

    def send(write: Callable[[bytes], None]) -> None:
        write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            write(b" " * 65536)
            sent.append(65536)

    with server(send) as url, pytest.raises(JudgeFailed, match="longer than"):
        ask(url)
    assert sum(sent) < 64 << 20  # what the buffers of two sockets hold


def test_a_small_file_that_unpacks_to_a_large_one_is_left():
    body = gzip.compress(b" " * (64 << 20))
    assert len(body) < transport.MAX_BYTES
    assert "longer than" in failing(body, "Content-Encoding: gzip")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\x1f\x8bnonsense", ["Content-Encoding: gzip"]),
        (gzip.compress(completion("Preferred: A"))[:-9], ["Content-Encoding: gzip"]),
        (b"x", ["Content-Encoding: br"]),
        (b"[" * 500_000, []),
        (b'{"choices": [{"message": {"content": ' + b"[" * 200_000, []),
        (b'{"choices": [{"message": {"content": 7}}]}', []),
        (b'{"choices": {}}', []),
        (b'{"choices": [{"message": {"content": "Preferred: A"}}], "usage": {"prompt_tokens": ' + b"9" * 5000, []),
        (b"\xff\xfe", []),
        (b"", []),
        (b"null", []),
        (b'{"choices": "\\ud800"}', []),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failed_call(body, headers):
    assert "(after 0 retries)" in failing(body, *headers)


@pytest.mark.parametrize(
    "raw", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000, b"HTTP/1.1 \xff"]
)
def test_what_is_no_http_is_a_failed_call(raw):
    with server(lambda send: send(raw)) as url, pytest.raises(JudgeFailed, match="connection to"):
        ask(url)


def test_gzip_and_deflate_are_read():
    import zlib

    for name, packed in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        body = packed(completion("Preferred: B"))
        with server(lambda send, body=body, name=name: send(whole(body, f"Content-Encoding: {name}"))) as url:
            assert ask(url).text == "Preferred: B"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("²", None), ("٣", None), ("-1", None), ("nan", None), ("1e9", None), ("inf", None), ("", None),
        ("Fri, 99 Foo 2020", None), ("Fri, 31 Dec 9999 23:59:59 -2359", 120.0), ("x" * 10_000, None), ("9" * 400, None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("3", 3.0), (" 2.5 ", 2.5), ("999999999", 120.0),
    ],
)  # fmt: skip
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_a_strange_retry_after_is_passed_over():
    calls = []

    def send(write: Callable[[bytes], None]) -> None:
        calls.append(1)
        body = completion("Preferred: A")
        write(whole(body) if len(calls) > 1 else whole(b"{}", "Retry-After: \xb2", status="429 Too Many"))

    with server(send) as url:
        assert ask(url, max_retries=1, backoff=0.01).retries == 1


# words


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 30_000,
        "</think>" * 30_000,
        "<think></think>" * 30_000,
        "preferred" + " " * 40_000 + "x",
        "x" + "\n" * 40_000 + "x",
        "Preferred:" + "'\" (" * 12_000,
        "Preferred: A confidence" + " " * 40_000 + "x",
        "confidence " * 4_000 + "Preferred: A " + "confidence_ " * 3_000,
        "```{" * 12_000,
        "```" + " " * 40_000,
        '{"preferred": ' + '"\\' * 20_000,
        "_" * 40_000,
        "*" * 40_000,
        "Preferred: A" + " " * 40_000 + "x",
        "Preferred: a" + " " * 40_000 + "x",
        ("\n" + " " * 40 + "preferred") * 800,
    ],
)  # fmt: skip
def test_no_words_take_longer_than_their_length(text):
    started = time.process_time()
    with suppress(Unparsable):
        parse(text)
    assert time.process_time() - started < 0.3


@pytest.mark.parametrize(
    "text",
    [
        "[" * 40_000,
        '{"preferred": ' + "[" * 40_000,
        '{"a": ' * 9_000 + "1" + "}" * 9_000,
        "x" * 60_000 + "\nPreferred: A",
        '{"preferred": ["A"]}',
        '{"preferred": "A", "confidence_score": true}',
        '{"preferred": "A", "confidence_score": [1]}',
        '{"preferred": "A", "confidence_score": NaN}',
        '{"preferred": "A", "confidence_score": 1e999}',
        '{"preferred": "A", "confidence_score": ' + "9" * 4000 + "}",
        '{"preferred": "A"} {"preferred": "B"}',
        "Preferred: A</think>",
        "<think>Preferred: A</think> I cannot say.",
    ],
)
def test_words_that_are_no_verdict(text):
    with pytest.raises(Unparsable):
        parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>" + "x" * 200_000 + "Preferred: A</think>\nPreferred: B", Verdict("B")),
        ("so B is worse. Preferred: B</think>\nPreferred: A\nConfidence: 70", Verdict("A", 70)),
        ('Here:\n```json\n{"comparison": "`x` and ```y``` differ", "preferred": "A"}\n```\n', Verdict("A")),
        ("> **Preferred:** A", Verdict("A")),
    ],
)
def test_words_that_are(text, expected):
    assert parse(text) == expected


# storage and cost


def hostile(words: bytes) -> type[Handler]:
    """A handler whose answer holds these words, as JSON writes them."""

    class Hostile(Handler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.count(json.dumps(request["messages"]))
            self.answer(200, b'{"model": "m", "choices": [{"message": {"content": "' + words + b'"}}]}', {})

    return Hostile


def test_a_lone_surrogate_and_line_separators_are_paid_once(files):  # noqa: F811
    words = rb"\ud800 \u2028 \u0085 \u0000 \u001b[2J\nPreferred: A\nConfidence score: 60"
    with serving() as running:
        running.RequestHandlerClass = hostile(words)
        for _ in range(2):
            train(*overrides(files, running.url, "task.on_disagreement=keep"))
        assert set(running.answered.values()) == {1}
    assert len(preferences(files)) == 24
    for name in ("annotations.jsonl", "cost.jsonl", "preferences.jsonl"):
        assert (output(files) / name).read_bytes().isascii()


def test_a_poisonous_answer_is_not_kept_and_the_next_start_asks_again(files):  # noqa: F811
    with serving() as running:
        running.RequestHandlerClass = hostile(b'{\\"preferred\\": ' + b"[" * 3000)
        with pytest.raises(RuntimeError, match="nested too deeply"):
            train(*overrides(files, running.url, "judge.max_retries=0"))
    with serving() as running:
        train(*overrides(files, running.url))
    assert len(preferences(files)) == 24


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5},
        {"completion_tokens": -(10**12)},
        {"prompt_tokens": 10**12},
        {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}},
        {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": -6}},
    ],
)
def test_usage_that_cannot_be_is_refused(usage):
    assert "usage" in failing(completion("Preferred: A", usage=usage))


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": True}, {"prompt_tokens": 1.5}, [], "x", None, {"prompt_tokens": "7"}]
)
def test_usage_that_is_no_count_counts_nothing(usage):
    with server(lambda send: send(whole(completion("Preferred: A", usage=usage)))) as url:
        assert ask(url).usage == {}


def test_a_price_below_nothing_is_refused():
    with pytest.raises(ValueError, match=r"price\.input must be >= 0"):
        judge("http://127.0.0.1:1/v1", price={"input": -1})


def test_three_annotators_on_one_cache_ask_each_prompt_once(files):  # noqa: F811
    class Slow(Handler):
        def do_POST(self) -> None:
            time.sleep(0.05)
            super().do_POST()

    with serving() as running:
        running.RequestHandlerClass = Slow
        command = [sys.executable, "launch.py", *overrides(files, running.url)]
        outputs = [files / f"out{number}" for number in range(3)]
        started = [
            subprocess.Popen([*command, f"task.output={place}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for place in outputs
        ]
        for process in started:
            assert process.wait() == 0, process.stderr and process.stderr.read()
        assert sum(running.calls.values()) == len(running.calls) == 48
    first, *others = ((place / "preferences.jsonl").read_bytes() for place in outputs)
    assert first.count(b"\n") == 24 and all(other == first for other in others)


def test_records_that_another_has_added_are_found(tmp_path):
    one, two = (Records(tmp_path / "records.jsonl", "key", shared=True) for _ in range(2))
    one.add({"key": "a", "value": 1})
    assert two.get("a") is None and two.fresh("a") == {"key": "a", "value": 1}
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')  # by a third, which was killed
    assert two.fresh("torn") is None
    two.add({"key": "b"})
    one.add({"key": "c"})
    assert [record["key"] for record in Records(tmp_path / "records.jsonl", "key")] == ["a", "b", "c"]


# keys


@pytest.mark.parametrize(
    "key", [f"{KEY}\n", f" {KEY}", f"{KEY}\r\nX-Evil: 1", "sk-\x00abcdef", "sk-schlüssel", "a b", "\n"]
)
def test_a_key_that_no_header_holds_is_refused_by_the_name_of_its_variable(monkeypatch, key):
    if "\x00" in key:
        monkeypatch.setattr(os, "environ", {**os.environ, "MY_JUDGE": key})
    else:
        monkeypatch.setenv("MY_JUDGE", key)
    with pytest.raises(ValueError, match=r"api_key_env=MY_JUDGE: the variable (ends with|holds)") as caught:
        judge("http://127.0.0.1:1/v1", api_key_env="MY_JUDGE")
    assert key.strip() not in str(caught.value) or key == "\n"


def test_a_run_with_such_a_key_asks_nothing_and_writes_nothing(files, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with serving() as running, pytest.raises(ConfigError, match=r"judge\.api_key_env=OPENAI_API_KEY") as caught:
        train(*overrides(files, running.url))
    assert running.calls == {} and not (files / "cache").exists()
    assert KEY not in str(caught.value)


class Echo(Handler):
    """Repeats the key wherever an answer has room for words, escaped in several ways."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        number = len(self.server.answered)
        self.server.count(str(number))
        words = f"Your key is {key}.\nPreferred: A" if number % 3 else f"{key} is all that I say"
        body = json.dumps({"model": f"m-{key}", "choices": [{"message": {"content": words}}], "usage": {}})
        self.answer(200, body.replace("/", "\\/").encode(), {})


def test_a_server_that_repeats_the_key_puts_it_nowhere(files, monkeypatch, capfd):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as running:
        running.RequestHandlerClass = Echo
        train(*overrides(files, running.url, "task.on_disagreement=keep"))
    said = capfd.readouterr()
    written = {path: path.read_text() for path in (files / "cache").rglob("*") if path.is_file()}
    assert "$OPENAI_API_KEY" in written[output(files) / "annotations.jsonl"]
    assert "$OPENAI_API_KEY" in written[output(files) / "failed.jsonl"]
    for form in (KEY, KEY.replace("/", "\\/"), "AbC+1234567890"):
        assert form not in said.out + said.err
        assert [path for path, text in written.items() if form in text] == []


def test_a_refusal_that_repeats_the_key_escaped(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    body = json.dumps({"error": f"wrong: {KEY}"}).replace("/", "\\/").encode()
    with server(lambda send: send(whole(body, status="401 No"))) as url, pytest.raises(JudgeStopped) as caught:
        ask(url)
    assert "AbC+1234567890" not in str(caught.value) and "$OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:pw@host/v1", "http://token@host/v1", "http://host/v1?api-key=abc", "http://host/v1#x", "http://",
            "http://host:99999/", "http://ho st/", "http://host/\n"],
)  # fmt: skip
def test_addresses_that_hold_more_than_a_place(url):
    with pytest.raises(ValueError, match="base_url must") as caught:
        judge(url)
    assert not any(word in str(caught.value) for word in ("pw@", "token@", "abc"))
