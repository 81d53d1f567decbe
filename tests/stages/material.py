"""What stage tests share beside fixtures: made-up data, and hashes of what came out."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

WORDS = ["bread", "flour", "water", "salt", "oven", "paris", "tokyo", "gradient"]
WORDS += ["loss", "slope", "adds", "sum", "seven", "eight", "river", "stone"]


def sentences(count: int, seed: int, low: int = 4, high: int = 12) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(low, high))) for _ in range(count)]


def data_table(rows: int, seed: int, prefix: str) -> pa.Table:
    return pa.table(
        {
            "id": [f"{prefix}{i}" for i in range(rows)],
            "prompt": sentences(rows, seed),
            "response": sentences(rows, seed + 1),
        }
    )


def file_hashes(folder: Path | str) -> dict[str, str]:
    """The SHA-256 of every file below a folder that holds results, by relative path."""
    root = Path(folder)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
