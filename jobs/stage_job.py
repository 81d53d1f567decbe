"""What every job script does: read the settings, join the cluster it was submitted to, run stages."""

import argparse
import os
import sys
from pathlib import Path

# A submitted job starts beside the package, which no node need have installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from influcoder_ray import pipeline
from influcoder_ray.cli import exit_status_of
from influcoder_ray.config import load_settings


def main(*stages: str) -> None:
    """Run the named stages (all of them if none is named) and exit with the status of the outcome."""
    parser = argparse.ArgumentParser(description=f"Run {', '.join(stages) or 'all stages'} on a Ray cluster.")
    parser.add_argument("--config", required=True, help="settings file (YAML)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="key.inner=value; repeatable"
    )
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="cluster to join")
    arguments = parser.parse_args()

    def command() -> None:
        settings = load_settings(arguments.config, arguments.overrides)
        pipeline.run(settings, stages=stages or pipeline.STAGES, address=arguments.address)

    sys.exit(exit_status_of(command))
