"""Several runs in one launch, one after the other: processes start, and import, once for all of them.

    torchrun --nproc-per-node 2 -m tests.distributed.many runs.json

runs.json: [{name, overrides, environment}]. Each run is composed and run as launch.py does it, in a group of processes
that lives on. environment: what another launcher would have told the processes; null: as they were started.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from tests.distributed.strategies import TOLD
from tests.runs import train


def main(path: str) -> int:
    """Runs all of them; returns 1 after the first that fails, whose other ranks the launcher ends."""
    for run in json.loads(Path(path).read_text()):
        if run["environment"] is not None:
            for name in [name for name in os.environ if name.startswith(TOLD)]:
                del os.environ[name]
            os.environ.update(run["environment"])
        try:
            train(*run["overrides"])
        except Exception:  # of whatever kind: the test shows it
            sys.stderr.write(f"run {run['name']}:\n{traceback.format_exc()}")
            return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as launch.py: torch's threads now and then abort an interpreter's end
