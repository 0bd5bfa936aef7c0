"""Judges behind any OpenAI-compatible server: hosted services, vLLM, SGLang, llama.cpp, `transformers serve`."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from rankpo.judges.base import Judge, JudgeFailed, JudgeStopped, Reply
from rankpo.judges.templates import ListTemplate, Template, for_lists, unmarked
from rankpo.judges.transport import LONGEST_PAUSE, NoAnswer, Transport
from rankpo.storage.printable import one_line
from rankpo.storage.secrets import redact, register
from rankpo.types import Prompt

RETRIED = (408, 409, 425, 429)
KEY = re.compile(r"[!-~]+")  # Valid in a header: printable ASCII without blanks.
MOST_TOKENS = 10**8  # Per call; higher counts of a server are rejected.
LONGEST_NAME = 200
SCHEMA = {
    "type": "object",
    "properties": {
        "comparison": {"type": "string"},
        "preferred": {"type": "string", "enum": ["A", "B"]},
        "confidence_score": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["comparison", "preferred", "confidence_score"],
    "additionalProperties": False,
}
LIST_SCHEMA = {
    "type": "object",
    "properties": {"comparison": {"type": "string"}, "ranking": {"type": "array", "items": {"type": "string"}}},
    "required": ["comparison", "ranking"],
    "additionalProperties": False,
}


@dataclass(kw_only=True)
class ServerJudge(Judge):
    """Chat completions at `base_url`/chat/completions.

    api_key_env: the environment variable that holds the key; the key itself is never written anywhere, not even where
    the server repeats it. structured: asks the server to constrain its answer to a JSON schema. timeout: seconds of one
    attempt, from the connection to the last byte of the answer. Time-outs, lost connections, 408, 409, 425, 429, 5xx
    and answers that cannot be read are tried again up to max_retries times, after `backoff`·2^n seconds with jitter, or
    after what Retry-After says. price: dollars per million tokens, null where none is known. extra: further keys of
    the request body.
    """

    base_url: str
    model: str
    template: Template
    list_template: ListTemplate | None = None
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    structured: bool = False
    concurrency: int = 8
    timeout: float = 60.0
    max_retries: int = 5
    backoff: float = 1.0
    price: Mapping[str, float | None] = field(default_factory=dict)  # type: ignore[assignment]
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_address()
        self._check_key()
        for name in ("concurrency", "timeout", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("max_retries", "backoff", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        strange = sorted(set(self.price) - {"input", "cached_input", "output"})
        if strange:
            raise ValueError(f"price has no {', '.join(strange)}; allowed: input, cached_input, output")
        self.price = price = {name: value for name, value in self.price.items() if value is not None}
        if negative := [name for name, value in price.items() if not value >= 0]:
            raise ValueError(f"price.{negative[0]} must be >= 0, got {price[negative[0]]}")
        self.name = self.model

    def _check_address(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, got {redact(self.base_url)!r}")
        try:
            parts = urlsplit(self.base_url)
            plain = bool(parts.hostname) and parts.port != 0
        except ValueError:
            plain = False
        if not plain or not KEY.fullmatch(self.base_url):
            raise ValueError("base_url must be an address such as http://localhost:8000/v1")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"base_url must hold no user, query or fragment; set the key in ${self.api_key_env}")

    def _check_key(self) -> None:
        """Raises ValueError for a key that is invalid in a header; the message contains only the variable's name."""
        register(self.api_key_env)
        key = os.environ.get(self.api_key_env, "")
        if key and not KEY.fullmatch(key):
            where = (
                "ends with white space"
                if key.rstrip() != key and KEY.fullmatch(key.rstrip())
                else ("holds white space, a control character or a character that is not ASCII")
            )
            raise ValueError(f"api_key_env={self.api_key_env}: the variable {where}; set it to the key alone")

    @cached_property
    def _transport(self) -> Transport:
        return Transport(self.concurrency, self.timeout)

    def close(self) -> None:
        self._transport.close()

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return self._body(self.template.messages(query, a, b), "preference", SCHEMA)

    def request_list(self, query: Prompt, passages: Sequence[str]) -> dict[str, object]:
        return self._body(for_lists(self.list_template).messages(query, passages), "ranking", LIST_SCHEMA)

    def _body(self, messages: Sequence[dict[str, str]], name: str, schema: Mapping[str, object]) -> dict[str, object]:
        """The body of a request; with `structured`, the answer must have the schema."""
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        if self.structured:
            named = {"name": name, "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def unmarked(self, *, lists: bool = False) -> str | None:
        return unmarked(self.template, self.list_template, lists)

    def count_cut(self, *texts: str, lists: bool = False) -> int:
        return (for_lists(self.list_template) if lists else self.template).count_cut(*texts)

    def ask(self, request: Mapping[str, object]) -> Reply:
        started = time.monotonic()
        problem = ""
        for attempt in range(self.max_retries + 1):
            reply, problem, pause = self._once(request)
            if reply is not None:
                return Reply(reply.text, reply.model, reply.usage, time.monotonic() - started, attempt)
            if attempt < self.max_retries:
                time.sleep(pause if pause is not None else self._pause(attempt))
        raise JudgeFailed(f"{one_line(redact(problem))} (after {self.max_retries} retries)")

    def _pause(self, attempt: int) -> float:
        """Returns an exponential pause with jitter, so that concurrent failures are not repeated at the same time."""
        return min(LONGEST_PAUSE, self.backoff * 2 ** min(attempt, 20)) * (0.5 + random.random() / 2)

    def _once(self, request: Mapping[str, object]) -> tuple[Reply | None, str, float | None]:
        """Returns the reply, or else an error text and the pause in Retry-After."""
        key = os.environ.get(self.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        try:
            answer = self._transport.post(url, json.dumps(request).encode(), headers)
        except NoAnswer as error:
            return None, str(error), None
        if answer.status in RETRIED or answer.status >= 500:
            return None, f"status {answer.status}", answer.retry_after
        if answer.status != 200:
            words = redact(answer.content.decode(errors="replace"))  # Servers may repeat a rejected key.
            raise JudgeStopped(
                f"{self.base_url} answers {answer.status}: {one_line(words[:300])!r}; "
                f"check judge.base_url, judge.model and the key in ${self.api_key_env}"
            )
        try:
            return self._read(answer.content), "", None
        except Exception as error:  # Malformed bytes can raise any exception, such as RecursionError.
            return None, f"the answer is not a chat completion ({type(error).__name__}: {str(error)[:200]})", None

    def _read(self, content: bytes) -> Reply:
        """Parses a chat completion. Raises any exception for other contents."""
        body = json.loads(content)
        text = text_of(body["choices"][0]["message"])
        named = body.get("model")
        model = one_line(redact(named))[:LONGEST_NAME] if isinstance(named, str) and named else self.model
        return Reply(redact(text), model, usage_of(body.get("usage")))


def text_of(message: Mapping[str, object]) -> str:
    """Returns the text of a message: its content, the texts among its parts, or its refusal.

    A message without content, such as one with tool calls only, has the empty text: it is paid for, and gives no
    verdict. Raises TypeError for other contents.
    """
    content = message["content"]
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError("it holds no text")
    return content


def usage_of(usage: object) -> dict[str, int]:
    """Returns the server's token counts, {} without counts. Raises ValueError for impossible counts."""
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details")
    named = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    named["cached_tokens"] = details.get("cached_tokens") if isinstance(details, dict) else None
    kept = {name: count for name, count in named.items() if isinstance(count, int) and not isinstance(count, bool)}
    for name, count in kept.items():
        if not 0 <= count <= MOST_TOKENS:
            raise ValueError(f"usage.{name} must be in 0 to {MOST_TOKENS}, got {str(count)[:20]}")
    if kept.get("cached_tokens", 0) > kept.get("prompt_tokens", 0):
        raise ValueError("usage counts more cached tokens than prompt tokens")
    return kept
