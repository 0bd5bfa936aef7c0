"""Advice for errors of transformers, peft and safetensors on the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rankpo.errors import ConfigError, LoadingError


@contextmanager
def advised(name: str, path: str, attn_implementation: str = "") -> Iterator[None]:
    """Converts other libraries' errors on files, packages and configurations to a LoadingError with advice.

    name, path: of the checkpoint. attn_implementation: the one that was asked for, for a message.
    """
    try:
        yield
    except (ConfigError, LoadingError):
        raise
    except SafetensorError as error:
        raise LoadingError(f"a weight file of {name} is damaged ({error}); copy it again") from error
    except (OSError, ImportError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise LoadingError(_advice(str(error) or type(error).__name__, name, path, attn_implementation)) from error


def _advice(text: str, name: str, path: str, attn_implementation: str) -> str:
    """Returns the message for an error with this text. path: "" for random weights."""
    folder = Path(path)
    if "trust_remote_code" in text:
        return (
            f"{name} needs code from its repository, which would run on this machine; read the code, then set "
            "model.trust_remote_code=true, or choose another model"
        )
    if "attention implementation" in text:
        return f"{name} does not run with {attn_implementation}; set model.attn_implementation=eager"
    if path and list(folder.glob("*.bin")) and not list(folder.glob("*.safetensors")):
        return (
            f"{name} has only pickled weights (*.bin), which can run code. If you trust the model, convert it: "
            "load it in transformers and call save_pretrained"
        )
    if "ignore_mismatched_sizes" in text or "size mismatch" in text:
        return (
            f"{name}: tensors have other sizes than its configuration states; the configuration and the weights are not "
            "of one model"
        )
    hint = "" if folder.is_dir() else "; set model.load_from to a folder, or check the hub id and the network"
    return f"cannot load {name}: {text.splitlines()[0]}{hint}"
