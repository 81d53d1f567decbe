"""The report's most and least influential examples of the whole corpus, found among units' tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.stages import attribute
from influcoder_ray.stages.work.page import group_extremes
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Output

# Few values, so that many are equal.
_SHARDS = st.lists(st.lists(st.integers(-6, 6), max_size=40), min_size=1, max_size=8)


@given(_SHARDS)
@settings(max_examples=40, deadline=None)
def test_they_are_those_of_one_full_sort_whatever_the_units(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]]
) -> None:
    """Prevents an example from being left out because its unit's scores looked too low, or were equal."""
    root = Path(tmp_path_factory.mktemp("run"))
    record = attribute.state(Place(str(root)))
    record.begin(Fingerprint({"stage": "attribute"}))
    everything = []
    for number, scores in enumerate(shards):
        rows = [
            {
                "example_id": f"{i % 3}-{number}-{i}",
                "source": f"{number}:{i}",
                "score": s / 8,
                "familiarity": 9.0,
            }
            for i, s in enumerate(scores)
        ]
        everything += rows
        table = pa.Table.from_pylist(rows, schema=schemas.GROUP_INFLUENCE)
        record.commit(f"u{number}", Output({attribute.GROUP: table}, 0, 0), 0.0)
    top, bottom, rows_found = group_extremes(record, 5.0)
    assert rows_found == len(everything)
    order = sorted(everything, key=lambda row: (-row["score"], row["example_id"]))
    best, worst = order[:10], order[::-1][:10]
    assert [row["source"] for row in top] == [row["source"] for row in best]
    assert [row["source"] for row in bottom] == [row["source"] for row in worst]
    assert [row["rank"] for row in top] == list(range(1, len(best) + 1))
    assert np.all([not row["unfamiliar"] for row in top])
