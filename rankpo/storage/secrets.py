"""Secrets: detection in environment variables, keys and texts, and redaction."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote

# Parts of a variable's name between underscores.
ANYWHERE = re.compile(r"(TOKEN|\w*(PASSWORD|PASSWD|PASSPHRASE|SECRET|APIKEY|APITOKEN|AUTHTOKEN|CREDENTIALS?))S?\d*")
AT_THE_END = re.compile(r"(\w*KEY|PASS|PWD|PAT|AUTH|BEARER|COOKIE|DSN)S?\d*")
NO_SECRET_AT_THE_END = re.compile(r"PATH|FILE|DIR|FOLDER|ENV|NAME|ID|URL|COUNT")
SHORTEST, SHORTEST_WORD = 8, 12  # In characters. A value with letters only can occur in a text by chance.

# Names of config keys and of query parameters, without dots, dashes and underscores.
KEY_NAME = re.compile(
    r".*(password|passwd|passphrase|secret|apikey|accesskey|privatekey|secretkey|accountkey|authorization|credentials?"
    r"|(hf|hub|auth|access|api|bearer|refresh|session|security|github|gitlab|wandb)token)|token|pwd|cookie"
)
QUERY_NAME = re.compile(r"key|sig|auth|code|.*(signature|credential|token)")
QUERY = re.compile(r"[?&;]([\w.%-]{1,60})=(?!\*\*\*)[^&;\s]+")  # Excludes the output of `redact`.
USER = re.compile(r"://(?!\*\*\*@)[^/\s@?#]*:[^/\s@?#]*@|\bhttps?://(?!\*\*\*@)[^/\s@?#]+@", re.IGNORECASE)
VALUE = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
    r"|AIza[\w-]{30,}|A[KS]IA[0-9A-Z]{16}|[srp]k_(live|test)_\w{16,}|npm_\w{30,}|pypi-[\w-]{30,}|nvapi-[\w-]{20,}"
    r"|gsk_\w{20,}|r8_\w{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)

_registered: set[str] = set()  # Variables that a config names.


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: HF_TOKEN, PGPASSWORD, openai_api_key, TOKEN_2."""
    parts = [part for part in re.split(r"[\W_]+", name.upper()) if part and not part.isdigit()]
    if not parts or name.upper() in ("PWD", "OLDPWD"):
        return False
    if len(parts) > 1 and NO_SECRET_AT_THE_END.fullmatch(parts[-1]):
        return False
    return any(ANYWHERE.fullmatch(part) for part in parts) or bool(AT_THE_END.fullmatch(parts[-1]))


def is_secret_key(name: str) -> bool:
    """Whether a config's key of this name, the part after its last dot, holds a secret: `api_key`, `x-api-key`."""
    return bool(KEY_NAME.fullmatch(re.sub(r"[\W_]", "", name).lower()))


def looks_secret(text: str) -> bool:
    """Whether a text holds a key of a known service, a user of an address, or a query parameter such as `?api-key=`."""
    if VALUE.search(text) or USER.search(text):
        return True
    names = (re.sub(r"[\W_]", "", name).lower() for name in QUERY.findall(text))
    return any(KEY_NAME.fullmatch(name) or QUERY_NAME.fullmatch(name) for name in names)


def register(variable: str) -> None:
    """Declares that an environment variable of any name holds a secret, such as the one of `judge.api_key_env`."""
    _registered.add(variable)


def known(environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """Yields (variable, value) of each secret of the environment that is longer than an ordinary word."""
    for name, value in environment.items():
        if name in _registered or is_secret_name(name):
            bare = value.strip()
            shortest = SHORTEST_WORD if bare.isalpha() and name not in _registered else SHORTEST
            if len(bare) >= shortest and (name in _registered or not _is_path(bare)):
                yield name, bare


def redact(text: str) -> str:
    """The text with `$VARIABLE` in place of each secret of the environment, and `***` for what looks like one."""
    for name, value in known():
        for form in _forms(value):
            text = text.replace(form, f"${name}")
    text = VALUE.sub("***", text)
    text = USER.sub(lambda match: f"{match.group().partition('://')[0]}://***@", text)
    return QUERY.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    return f"{match.group().partition('=')[0]}=***" if looks_secret(match.group()) else match.group()


def _forms(value: str) -> list[str]:
    """The possible forms of the value in a text: unchanged, or escaped for JSON, an address or HTML."""
    in_json = json.dumps(value)[1:-1]
    forms = {value, in_json, in_json.replace("/", "\\/"), quote(value, safe=""), quote(value), html.escape(value)}
    return sorted(forms, key=len, reverse=True)


def _is_path(value: str) -> bool:
    """Whether the value is the path of a file or folder, since a variable such as SIGNING_KEY can hold a path."""
    try:
        return ("/" in value or "\\" in value) and os.path.exists(os.path.expanduser(value))
    except ValueError:  # The path contains a NUL character.
        return False
