"""Bergson's `build` on the same rows, where its command is installed.

Bergson (PyPI `bergson`, seen with 2.5.1) projects each module's gradient on both sides to 16 x 16 and
writes all of them to a file. It runs as a process of its own, since it brings its own loading.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from influcoder_ray.examples.tokens import Tokens

PROJECTION = 16
TOKENS_PER_BATCH = 2048
_PRECISIONS = {
    "float32": ("--precision=fp32",),
    "tf32": ("--precision=fp32", "--use_tf32_matmuls"),
    "bfloat16": ("--precision=bf16",),
}
# The last state of its progress bar: batches done, and the mean time of one.
_PROGRESS = re.compile(r"Collecting gradients: 100%[^\r\n]*?(\d+)/\1 \[[^\]]*, *([\d.]+)(it/s|s/it)\]")


@dataclass(frozen=True)
class Bergson:
    """What came of it: tokens a second, or None and why."""

    tokens_per_second: float | None
    note: str


def run_bergson(model: str, tokens: Sequence[Tokens], *, dtype: str, threads: int, window: int) -> Bergson:
    """Tokens a second of Bergson's gradient collection, its loading and its start left out.

    Its own clock is read, the progress bar over its batches, whose first one is not warmed up.

    Args:
        model: folder of the causal LM.
        tokens: examples as token ids, which it takes as they are.
        window: most tokens that the model takes; Bergson wants no larger batches.
    """
    command = shutil.which("bergson")
    if command is None:
        return Bergson(None, "not installed")
    with tempfile.TemporaryDirectory(prefix="bergson") as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.write_text("".join(json.dumps(_row(t)) + "\n" for t in tokens))
        done = subprocess.run(
            [
                *(command, "build", str(Path(folder) / "index"), f"--model={Path(model).resolve()}"),
                *(f"--dataset={rows}", f"--projection_dim={PROJECTION}", "--nproc_per_node=1"),
                *(f"--token_batch_size={min(TOKENS_PER_BATCH, window)}", *_PRECISIONS[dtype]),
            ],
            cwd=folder,
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": str(Path(folder) / "datasets"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = next(iter(reversed(done.stderr.strip().splitlines())), "it says nothing")
        return Bergson(None, f"failed with exit status {done.returncode}: {reason}")
    seconds = collection_seconds(done.stderr)
    if seconds is None:
        return Bergson(None, "its progress bar does not read as expected")
    return Bergson(sum(len(t.ids) for t in tokens) / seconds, f"projection {PROJECTION}")


def collection_seconds(output: str) -> float | None:
    """Seconds of the gradient collection, from what Bergson wrote to standard error; None if not there."""
    found = _PROGRESS.findall(output)
    if not found or not float(found[-1][1]):
        return None
    batches, rate, unit = found[-1]
    return int(batches) * float(rate) if unit == "s/it" else int(batches) / float(rate)


def _row(tokens: Tokens) -> dict[str, list[int] | int]:
    ids, unlabelled = list(tokens.ids), tokens.labelled_from
    return {"input_ids": ids, "labels": [-100] * unlabelled + ids[unlabelled:], "length": len(ids)}
