"""A chat completion server on loopback that answers by a rule and, if asked, misbehaves."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "hang", "truncated", "wrong keys", "no words")


def choice(messages: list[dict[str, str]]) -> str:
    """The text with the larger number after `value`; of texts without one, the longer, and of these the later in order."""
    content = messages[-1]["content"]
    texts = re.findall(r"<(?:passage|response) [AB]>\n(.*?)\n</(?:passage|response) [AB]>", content, re.DOTALL)
    a, b = (merit(text) for text in texts)
    return "A" if a >= b else "B"


def merit(text: str) -> tuple[int, int, str]:
    value = re.search(r"value (-?\d+)", text)
    return (int(value[1]) if value else 0, len(text), text)


def order(messages: list[dict[str, str]]) -> str | None:
    """The letters of a list by `merit`, best first; None for a prompt of two passages."""
    content = messages[-1]["content"]
    found = re.findall(r"<passage ([A-Z])>\n(.*?)\n</passage \1>", content, re.DOTALL)
    if "Ranking:" not in content:
        return None
    return " > ".join(letter for letter, text in sorted(found, key=lambda pair: merit(pair[1]), reverse=True))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        prompt = hashlib.sha256(json.dumps(request["messages"]).encode()).hexdigest()
        fault = self.server.next_fault(prompt)
        if fault in ("429", "500", "401"):
            headers = {"Retry-After": "0"} if fault == "429" else {}
            return self.answer(int(fault), b"{}", headers)
        if fault == "hang" or (fault is None and self.server.is_spent()):
            return self.wait_for_the_client_to_go()
        if (ranking := order(request["messages"])) is not None:
            words = f"One is larger: [A] > [B].\n\nRanking: {ranking}\n"
        else:
            words = f"Comparison: one is larger.\n\nPreferred: {choice(request['messages'])}\nConfidence score: 90"
        if fault == "no words":
            words = "I would rather not say."
        record: dict[str, Any] = {"model": "loopback", "choices": [{"message": {"content": words}}]}
        record["usage"] = {"prompt_tokens": len(body) // 4, "completion_tokens": 12}
        content = json.dumps({"error": "?"} if fault == "wrong keys" else record).encode()
        if fault == "truncated":
            content = content[: len(content) // 2]
        elif fault is None:
            self.server.count(prompt)
        return self.answer(200, content, {})

    def wait_for_the_client_to_go(self) -> None:
        with suppress(ConnectionError):
            self.connection.recv(1)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """faults: for every prompt, its first calls get these in turn, chosen by its hash if `mixed`.

    Only the first `hang` is one, since it takes the client's whole patience, which must be too long for a machine
    under load to use it up; the others are answered with 500.
    """

    daemon_threads = True

    def __init__(self, faults: tuple[str, ...] = (), mixed: bool = False, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.faults, self.mixed, self.hangs = faults, mixed, 0
        self.limit: int | None = None  # of prompts; after them it hangs
        self.calls: dict[str, int] = {}
        self.answered: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_fault(self, prompt: str) -> str | None:
        with self.lock:
            number = self.calls.get(prompt, 0)
            self.calls[prompt] = number + 1
            faults = self.faults
            if self.mixed and faults:
                first = int(prompt, 16) % (len(faults) + 2)
                faults = faults[first : first + 1]
            fault = faults[number] if number < len(faults) else None
            self.hangs += fault == "hang"
        return "500" if fault == "hang" and self.hangs > 1 else fault

    def is_spent(self) -> bool:
        return self.limit is not None and len(self.answered) >= self.limit

    def count(self, prompt: str) -> None:
        with self.lock:
            self.answered[prompt] = self.answered.get(prompt, 0) + 1


@contextmanager
def serving(*faults: str, mixed: bool = False) -> Iterator[Server]:
    server = Server(faults, mixed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8123)
    Server(port=parser.parse_args().port).serve_forever()
