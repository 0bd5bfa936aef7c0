"""Benchmarks: ours and its peers side by side in one run. `python -m benchmarks.NAME`; see README.md for what each shows."""
