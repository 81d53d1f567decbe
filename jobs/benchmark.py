"""Measure a part of this package beside what people would use without it, or beside the ideal.

python jobs/benchmark.py gradients --model MODEL_FOLDER --rows rows.parquet --json gradients.json
python jobs/benchmark.py embed --encoder ENCODER_FOLDER --rows rows.parquet --json embed.json
python jobs/benchmark.py units --json units.json
python jobs/benchmark.py search --work vectors --json search.json
python jobs/benchmark.py known-answers --pool facts.parquet --queries queries.parquet --supports support_ids

`units` starts Ray, or joins a cluster; the others run on a bare machine, with a GPU or without.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# It runs from a checkout, beside the package, which need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import embed, gradients, known_answers, search, units

from influcoder_ray.cli import exit_status_of

BENCHMARKS = {
    "embed": embed,
    "gradients": gradients,
    "known-answers": known_answers,
    "search": search,
    "units": units,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark; returns the exit status of the outcome."""
    parser = argparse.ArgumentParser(description="Measure a part of influcoder-ray.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        title = benchmark.TITLE
        benchmark.add_arguments(benchmarks.add_parser(name, help=title, description=title))
    parsed = parser.parse_args(arguments)
    # Notices of libraries to each other, which no user can do anything about.
    warnings.filterwarnings("ignore", category=FutureWarning)
    return exit_status_of(lambda: BENCHMARKS[parsed.benchmark].run(parsed))


if __name__ == "__main__":
    sys.exit(main())
