"""The module that `python -m rankpo`, `accelerate launch -m rankpo` and `torchrun -m rankpo` run."""

from __future__ import annotations

from rankpo.cli.commands import main

if __name__ == "__main__":
    main()
