"""Writing a part of a corpus, without Ray: which of its rows go where, and how much text it may hold."""

from pathlib import Path

import pyarrow as pa

from influcoder_ray.stages.work.writing import ADDED, WriteWork
from influcoder_ray.tables import schemas
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.records import Records
from influcoder_ray.tables.units import Piece, Unit

UNIT = Unit("u", (Piece(Place("corpus.parquet"), "corpus.parquet", (0,), 0, None),))


def chosen(rows: list[int]) -> pa.Table:
    """What was chosen of the unit, the last row ranked first."""
    count = len(rows)
    return pa.table(
        {
            "part": ["u"] * count,
            "row": rows,
            "example_id": [f"e{row}" for row in rows],
            "score": [0.1 * row for row in rows],
            "aim": [0] * count,
            "source": [f"corpus.parquet:{row}" for row in rows],
            "rank": [count - place for place in range(count)],
            "tokens": [None] * count,
        },
        schema=schemas.CHOSEN,
    )


def work(folder: Path, rest: str | None) -> WriteWork:
    return WriteWork(str(folder), "select", "chosen.parquet", [], ["a query"], "taken", rest)


def test_each_row_goes_where_it_belongs_with_its_own_score(tmp_path: Path) -> None:
    """Prevents scores beside other rows than theirs, where conditions have left out some."""
    records = Records(pa.table({"text": ["a", "b", "c", "d"]}), [10, 12, 13, 17], ())
    found = work(tmp_path, "rest").process(UNIT, (chosen([12, 17]), records), lambda rows: None)
    assert found.tables["taken"]["text"].to_pylist() == ["b", "d"]
    assert found.tables["taken"].select(ADDED).to_pylist() == [
        dict(zip(ADDED, (row["score"], row["rank"], "a query"), strict=True))
        for row in chosen([12, 17]).to_pylist()
    ]
    assert found.tables["rest"]["text"].to_pylist() == ["a", "c"]


def test_a_part_may_hold_more_than_two_gigabytes_of_text(tmp_path: Path) -> None:
    """Prevents a unit of long documents that fails however often it is tried."""
    chunk = pa.array(["x" * (1 << 20)] * 32)
    # One chunk again and again, which takes its memory once.
    table = pa.table({"text": pa.chunked_array([chunk] * 80)})
    assert table.nbytes > 1 << 31
    records = Records(table, range(table.num_rows), ())
    found = work(tmp_path, None).process(UNIT, (chosen([5, 2000]), records), lambda rows: None)
    assert found.tables["taken"]["text"].to_pylist() == ["x" * (1 << 20)] * 2
