"""Judges behind any OpenAI-compatible server: hosted services, vLLM, SGLang, llama.cpp, `transformers serve`."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

from rankpo.judges.base import Judge, JudgeFailed, JudgeStopped, Reply
from rankpo.judges.templates import Template
from rankpo.types import Prompt

RETRIED = (408, 409, 425, 429)
LONGEST_PAUSE = 120.0
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


@dataclass(kw_only=True)
class ServerJudge(Judge):
    """Chat completions at `base_url`/chat/completions.

    api_key_env: the environment variable that holds the key; the key itself is never written anywhere. structured:
    asks the server to constrain its answer to a JSON schema. timeout: seconds of one call. Time-outs, lost
    connections, 408, 409, 425, 429, 5xx and answers that are no answer are tried again up to max_retries times, after
    `backoff`·2^n seconds with jitter, or after what Retry-After says. price: dollars per million tokens, null where none is known. extra: further keys of
    the request body.
    """

    base_url: str
    model: str
    template: Template
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    structured: bool = False
    concurrency: int = 8
    timeout: float = 60.0
    max_retries: int = 5
    backoff: float = 1.0
    price: Mapping[str, float | None] = field(default_factory=dict)  # type: ignore[assignment]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, got {self.base_url!r}")
        for name in ("concurrency", "timeout", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("max_retries", "backoff", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        strange = sorted(set(self.price) - {"input", "cached_input", "output"})
        if strange:
            raise ValueError(f"price has no {', '.join(strange)}; allowed: input, cached_input, output")
        self.price = {name: value for name, value in self.price.items() if value is not None}
        self.name = self.model

    @cached_property
    def _client(self) -> Any:
        import httpx

        limits = httpx.Limits(max_connections=self.concurrency)
        return httpx.Client(timeout=httpx.Timeout(self.timeout), limits=limits)

    def request(self, query: Prompt, a: str, b: str) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": self.template.messages(query, a, b),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        if self.structured:
            schema = {"name": "preference", "schema": SCHEMA, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def count_cut(self, *texts: str) -> int:
        return self.template.count_cut(*texts)

    def ask(self, request: Mapping[str, Any]) -> Reply:
        started = time.monotonic()
        problem = ""
        for attempt in range(self.max_retries + 1):
            reply, problem, pause = self._once(request)
            if reply is not None:
                return Reply(reply.text, reply.model, reply.usage, time.monotonic() - started, attempt)
            if attempt < self.max_retries:
                time.sleep(pause if pause is not None else self._pause(attempt))
        raise JudgeFailed(f"{problem} (after {self.max_retries} retries)")

    def _pause(self, attempt: int) -> float:
        """Exponential, with jitter, so that calls that failed together do not come back together."""
        return min(LONGEST_PAUSE, self.backoff * 2**attempt) * (0.5 + random.random() / 2)

    def _once(self, request: Mapping[str, Any]) -> tuple[Reply | None, str, float | None]:
        """The reply; or what went wrong, and the pause that the server asks for."""
        import httpx

        key = os.environ.get(self.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = self._client.post(
                f"{self.base_url.rstrip('/')}/chat/completions", json=dict(request), headers=headers
            )
        except httpx.TimeoutException:
            return None, f"no answer within {self.timeout:g} s", None
        except httpx.TransportError as error:
            return None, f"connection to {self.base_url}: {error}", None
        if response.status_code in RETRIED or response.status_code >= 500:
            return None, f"status {response.status_code}", _retry_after(response.headers.get("retry-after"))
        if response.status_code != 200:
            # servers repeat the key that they refuse
            words = response.text.replace(key, f"${self.api_key_env}") if key else response.text
            raise JudgeStopped(
                f"{self.base_url} answers {response.status_code}: {words[:300]!r}; "
                f"check judge.base_url, judge.model and the key in ${self.api_key_env}"
            )
        return self._read(response.content)

    def _read(self, content: bytes) -> tuple[Reply | None, str, float | None]:
        try:
            body = json.loads(content)
            text = body["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return None, f"the answer is no chat completion ({type(error).__name__}: {error})", None
        if not isinstance(text, str):
            return None, "the answer holds no text", None
        return Reply(text, str(body.get("model") or self.model), _usage(body.get("usage"))), "", None


def _usage(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    kept = {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if isinstance(usage.get(name), int)}
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        kept["cached_tokens"] = details["cached_tokens"]
    return kept


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if value is None:
        return None
    if value.strip().replace(".", "", 1).isdigit():
        return min(LONGEST_PAUSE, float(value))
    try:
        return min(LONGEST_PAUSE, max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    except ValueError:
        return None
