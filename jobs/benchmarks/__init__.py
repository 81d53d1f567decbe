"""The benchmarks of jobs/benchmark.py: each has TITLE, `add_arguments` and `run`."""
