"""The entry point of a checkout: compose the config, check it, run the task.

    accelerate launch launch.py loss=rankpo model=minilm datasets=[jobs] exp_name=first

`rankpo KEY=VALUE …` and `python -m rankpo KEY=VALUE …` of an installed package are the same program.
"""

from __future__ import annotations

from rankpo.cli.program import main, start

if __name__ == "__main__":
    start(main)
