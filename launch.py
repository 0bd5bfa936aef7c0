"""Entry point of a checkout: composes the config, checks it, and runs the task.

    accelerate launch launch.py loss=rankpo model=minilm datasets=[jobs] exp_name=first

`rankpo KEY=VALUE …` and `python -m rankpo KEY=VALUE …` of an installed package are the same program.
"""

from __future__ import annotations

from rankpo.cli.program import main, start

if __name__ == "__main__":
    start(main)
