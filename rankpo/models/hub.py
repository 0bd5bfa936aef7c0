"""Upload of a saved folder to the Hugging Face hub, or to a server with the same HTTP interface."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from rankpo.errors import ConfigError

UNREACHABLE: tuple[type[Exception], ...] = tuple(
    found for found in HfHubHTTPError.__mro__[1:] if issubclass(found, Exception) and found is not Exception
)
TOKEN = "set HF_TOKEN to a token that may write, or run `hf auth login`"


def push(
    folder: Path, repo_id: str, *, private: bool = True, revision: str | None = None, endpoint: str | None = None
) -> str:
    """Uploads a folder to a model repository, which is created if it does not exist, and returns its URL.

    repo_id: OWNER/NAME, or NAME for the owner of the token. private: whether a new repository is private. revision: an
    existing branch; None means main. endpoint: the server; None means HF_ENDPOINT, or else huggingface.co. The token
    comes from HF_TOKEN or `hf auth login`. Raises ConfigError if the server refuses or HF_HUB_OFFLINE is set.
    """
    try:
        validate_repo_id(repo_id)
        api = HfApi(endpoint=endpoint)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=revision,
            ignore_patterns=[".*"],
            commit_message="Upload by rankpo",
        )
    except OfflineModeIsEnabled as error:
        raise ConfigError([f"{repo_id}: HF_HUB_OFFLINE=1 forbids uploads; unset it"]) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = f"; {TOKEN}" if status in (401, 403) else ""
        raise ConfigError(
            [f"{repo_id}: the hub refused the upload ({status}: {_first_line(error)}){remedy}"]
        ) from error
    except UNREACHABLE as error:
        raise ConfigError([f"{repo_id}: no connection to the hub ({_first_line(error)})"]) from error
    except ValueError as error:
        raise ConfigError([f"{repo_id}: {_first_line(error)}"]) from error
    return str(made)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
