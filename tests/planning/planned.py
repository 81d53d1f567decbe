"""Made-up rows for settings that are only planned."""

import pyarrow as pa

COLUMNS = {"id": "id", "prompt": "prompt", "response": "response"}


def rows(count: int, prefix: str) -> pa.Table:
    return pa.table(
        {
            "id": [f"{prefix}{i}" for i in range(count)],
            "prompt": [f"what is the number {i} of {prefix}" for i in range(count)],
            "response": [f"the number {i} adds up to {i * i}" for i in range(count)],
        }
    )
