"""The settings files for well-known corpora are such, and fit files of these corpora's layouts."""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder_ray.config import load_settings
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import require_columns, require_types
from influcoder_ray.tables.units import plan_units

FOLDER = Path(__file__).parents[2] / "jobs/corpora"
TEXTS = ["A document.", "Another one,\nof two lines."]

Rows = list[Mapping[str, Any]]


def as_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def as_lines(path: Path, rows: Rows) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


# A file's name below the corpus's folder, its columns beside the text, and who writes it: as the data sets'
# cards have them.
LAYOUTS: dict[str, tuple[str, str, Mapping[str, Any], Callable[[Path, Rows], None]]] = {
    "fineweb": (
        "000_00000.parquet",
        "text",
        {"id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://a.example/", "language_score": 0.9}
        | {"date": "2024-02-21T00:00:00Z", "file_path": "s3://", "language": "en", "token_count": 4},
        as_parquet,
    ),
    "dolma": (
        "cc_en_head-0000.json.gz",
        "text",
        {"id": "1", "source": "common-crawl", "added": "2023-04-11", "created": "2020-01-17", "metadata": {}},
        as_lines,
    ),
    "redpajama": (
        "0000/en_head.json.gz",
        "raw_content",
        {"url": "https://a.example/", "title": "a", "length": 11, "language": "en", "date_download": "2023"},
        as_lines,
    ),
}

# What a row says that the settings leave out.
LEFT_OUT: dict[str, Mapping[str, Any]] = {"fineweb": {"language_score": 0.7}}


def test_there_is_a_layout_for_each_file() -> None:
    """Prevents a settings file that nothing tries."""
    assert {path.stem for path in FOLDER.iterdir()} == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_settings_of_a_corpus_read_the_texts_of_its_files(name: str, tmp_path: Path) -> None:
    """Prevents a column or an ending that the corpus does not have, found out on a cluster."""
    settings = load_settings(str(FOLDER / f"{name}.yaml"))
    file, text, others, write = LAYOUTS[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    left_out = [{text: "Not English.", **others, **LEFT_OUT[name]}] if name in LEFT_OUT else []
    write(tmp_path / file, [*({text: value, **others} for value in TEXTS), *left_out])
    wildcards = settings.corpus.path.partition("/*")
    data = settings.corpus.model_copy(update={"path": str(tmp_path) + "".join(wildcards[1:])})
    files = data.files("corpus")
    columns = settings.corpus.columns
    require_columns(files, columns.names, setting="corpus.columns")
    require_types(files, columns.kinds, setting="corpus.columns")
    found = [
        example
        for unit in plan_units(files, rows_per_unit=1, fingerprint="")
        for example in examples_from_cells(
            read_cells(unit, columns.names), columns, relative=unit.piece.relative
        )[0]
    ]
    assert [example.response for example in found] == TEXTS
    assert [example.example_id for example in found] == [f"{file}:{row}" for row in range(2)]
