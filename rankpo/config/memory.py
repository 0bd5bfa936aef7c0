"""Limits of memory: the message for a failed allocation, and the smallest limit with which a run can start."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import resource

# torch maps about 650 MiB of addresses, and transformers and the rest 250 more. With less, the C++ runtime often ends the
# process during the import, and nothing can be said then.
SMALLEST_ADDRESS_SPACE = 900 << 20


def memory_message(error: BaseException) -> str:
    """The message of a run that ended for lack of memory, with the keys to change and the limit of the process, if any."""
    words = str(error).splitlines()
    limit = address_space()
    now = "" if limit is None else f", which is {limit >> 20:,} MiB"
    return (
        f"out of memory ({words[0][:200] if words else type(error).__name__}); lower trainer.max_tokens, "
        "trainer.batch_size or the maximum lengths of model, or raise the memory limit of the job (ulimit -v or the "
        f"scheduler's{now})"
    )


def too_small_to_start() -> str | None:
    """The message for a limit of the address space below which the libraries cannot be imported, or None."""
    limit = address_space()
    if limit is None or limit >= SMALLEST_ADDRESS_SPACE:
        return None
    return (
        f"out of memory: the limit of the address space (ulimit -v) is {limit >> 20:,} MiB, and torch and transformers "
        f"alone need {SMALLEST_ADDRESS_SPACE >> 20:,} MiB; raise it, to ulimit -v {4 << 20} or more for a small model"
    )


def address_space() -> int | None:
    """The limit of this process's address space in bytes, or None without one."""
    if sys.platform == "win32":
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit
